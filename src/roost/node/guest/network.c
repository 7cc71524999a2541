#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "fail.h"
#include "network.h"

struct netlink_request { struct nlmsghdr head; uint8_t rest[256]; };

static void add_attribute(struct netlink_request *r, int type, const void *data, size_t length) {
    struct rtattr *a = (void *)((uint8_t *)r + NLMSG_ALIGN(r->head.nlmsg_len));
    a->rta_type = type;
    a->rta_len = RTA_LENGTH(length);
    memcpy(RTA_DATA(a), data, length);
    r->head.nlmsg_len = NLMSG_ALIGN(r->head.nlmsg_len) + RTA_ALIGN(a->rta_len);
}

static int send_netlink(int fd, struct netlink_request *r, const char *what) {
    struct { struct nlmsghdr head; struct nlmsgerr error; uint8_t rest[512]; } reply;
    r->head.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    if (send(fd, r, r->head.nlmsg_len, 0) < 0 || recv(fd, &reply, sizeof reply, 0) < 0) return fail(what);
    if (reply.head.nlmsg_type == NLMSG_ERROR && reply.error.error) {
        errno = -reply.error.error;
        return fail(what);
    }
    return 0;
}

static int link_up(int fd, int index, uint32_t mtu) {
    struct netlink_request r = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)), .nlmsg_type = RTM_NEWLINK}};
    struct ifinfomsg *m = NLMSG_DATA(&r.head);
    m->ifi_index = index;
    m->ifi_flags = m->ifi_change = IFF_UP;
    if (mtu) add_attribute(&r, IFLA_MTU, &mtu, 4);
    return send_netlink(fd, &r, "bring the interface up");
}

static int add_address(int fd, int index, int family, const void *address, int prefix) {
    struct netlink_request r = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifaddrmsg)), .nlmsg_type = RTM_NEWADDR,
                                         .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE}};
    struct ifaddrmsg *m = NLMSG_DATA(&r.head);
    size_t size = family == AF_INET ? 4 : 16;
    m->ifa_family = family;
    m->ifa_prefixlen = prefix;
    m->ifa_index = index;
    m->ifa_flags = family == AF_INET6 ? IFA_F_NODAD : 0;
    add_attribute(&r, IFA_LOCAL, address, size);
    add_attribute(&r, IFA_ADDRESS, address, size);
    return send_netlink(fd, &r, "add the address");
}

static int add_default_route(int fd, int index, int family, const void *gateway) {
    struct netlink_request r = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtmsg)), .nlmsg_type = RTM_NEWROUTE,
                                         .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE}};
    struct rtmsg *m = NLMSG_DATA(&r.head);
    m->rtm_family = family;
    m->rtm_table = RT_TABLE_MAIN;
    m->rtm_protocol = RTPROT_STATIC;
    m->rtm_type = RTN_UNICAST;
    m->rtm_flags = RTNH_F_ONLINK;
    add_attribute(&r, RTA_GATEWAY, gateway, family == AF_INET ? 4 : 16);
    add_attribute(&r, RTA_OIF, &index, 4);
    return send_netlink(fd, &r, "add the default route");
}

/* Nobody is on the link but the gateway. So nobody else is asked for: entries that wait for an answer would fill the
 * kernel's table, which is one for all network namespaces, whereas those that have failed make room. */
static int know_gateway(int fd, int index, int family, const void *gateway, const uint8_t *mac) {
    struct netlink_request r = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ndmsg)), .nlmsg_type = RTM_NEWNEIGH,
                                         .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE}};
    struct ndmsg *m = NLMSG_DATA(&r.head);
    m->ndm_family = family;
    m->ndm_ifindex = index;
    m->ndm_state = NUD_PERMANENT;
    add_attribute(&r, NDA_DST, gateway, family == AF_INET ? 4 : 16);
    add_attribute(&r, NDA_LLADDR, mac, 6);
    return send_netlink(fd, &r, "add the gateway's neighbour entry");
}

static int ask_for_nobody(int fd, int index, int family) {
    struct netlink_request r = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ndtmsg)), .nlmsg_type = RTM_SETNEIGHTBL}};
    struct ndtmsg *m = NLMSG_DATA(&r.head);
    const char *table = family == AF_INET ? "arp_cache" : "ndisc_cache";
    struct { struct rtattr head; uint32_t value; } parameters[] = {{{8, NDTPA_IFINDEX}, index},
        {{8, NDTPA_MCAST_PROBES}, 0}, {{8, NDTPA_APP_PROBES}, 0}};
    m->ndtm_family = family;
    add_attribute(&r, NDTA_NAME, table, strlen(table) + 1);
    add_attribute(&r, NDTA_PARMS, parameters, sizeof parameters);
    return send_netlink(fd, &r, "keep the neighbour table empty");
}

static int parse_mac(const char *text, uint8_t *mac) {
    unsigned part[6];
    if (sscanf(text, "%x:%x:%x:%x:%x:%x", part, part + 1, part + 2, part + 3, part + 4, part + 5) != 6) return -1;
    for (int i = 0; i < 6; i++) mac[i] = part[i];
    return 0;
}

int configure_network(char **word, int words) {
    uint8_t address[16], gateway[16], mac[6];
    int result = -1;
    errno = EINVAL;
    if ((words != 3 && words != 6 && words != 9) || parse_mac(word[2], mac)) return fail("network plan");
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) return fail("netlink");
    int loopback = if_nametoindex("lo"), index = if_nametoindex(word[0]);
    if (!index) { fail(word[0]); goto out; }
    if (link_up(fd, loopback, 0) || link_up(fd, index, atoi(word[1]))) goto out;
    for (int i = 3; i < words; i += 3) {
        int family = strchr(word[i], ':') ? AF_INET6 : AF_INET;
        if (inet_pton(family, word[i], address) != 1 || inet_pton(family, word[i + 2], gateway) != 1) {
            errno = EINVAL;
            fail(word[i]);
            goto out;
        }
        if (ask_for_nobody(fd, index, family) || know_gateway(fd, index, family, gateway, mac)) goto out;
        if (add_address(fd, index, family, address, atoi(word[i + 1]))) goto out;
        if (add_default_route(fd, index, family, gateway)) goto out;
    }
    result = 0;
out:
    close(fd);
    return result;
}
