/* The inside of the sandbox's link: addresses, routes and the gateway, by netlink. */
#ifndef ROOST_NETWORK_H
#define ROOST_NETWORK_H

/* The node's plan: interface, mtu, MAC of the gateway, then (address, prefix, gateway) for IPv4 and for IPv6. */
int configure_network(char **word, int words);

#endif
