#!/bin/sh
# Makes a microVM of a sandbox, at each of its starts, as root: the user $1, who may become root by sudo, and the
# program sudo (microvm.c says why it is ours). Every step may be repeated, since a start may be killed anywhere.
set -eu
umask 022
user=$1
tools=/run/roost/tools
chmod 711 /run/roost
chmod 755 "$tools"

free_id() { # the first from $1 on that is neither a user's nor a group's
    id=$1
    while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd /etc/group; do id=$((id + 1)); done
    echo "$id"
}

if ! grep -q "^$user:" /etc/passwd; then
    if ! grep -q "^$user:" /etc/group; then echo "$user:x:$(free_id 1000):" >>/etc/group; fi
    gid=$(sed -n "s/^$user:[^:]*:\([0-9]*\):.*/\1/p" /etc/group | head -n 1)
    uid=$gid
    if grep -q "^[^:]*:[^:]*:$uid:" /etc/passwd; then uid=$(free_id 1000); fi
    shell=/bin/sh
    if [ -x /bin/bash ]; then shell=/bin/bash; fi
    if [ ! -e "/home/$user" ]; then
        mkdir -p /etc/skel "/home/$user"
        cp -R /etc/skel/. "/home/$user/"
    fi
    chmod 750 "/home/$user"
    chown -R "$uid:$gid" "/home/$user"
    if [ -e /etc/shadow ] && ! grep -q "^$user:" /etc/shadow; then echo "$user:*:19700:0:99999:7:::" >>/etc/shadow; fi
    echo "$user:x:$uid:$gid::/home/$user:$shell" >>/etc/passwd
fi

if ! grep -q '^sudo:' /etc/group; then echo "sudo:x:$(free_id 900):" >>/etc/group; fi
if ! grep -Eq "^sudo:.*[:,]$user(,|\$)" /etc/group; then
    sed -e "s/^\(sudo:[^:]*:[^:]*\):\$/\1:$user/" -e t -e "s/^sudo:.*\$/&,$user/" /etc/group >/etc/group.roost
    mv /etc/group.roost /etc/group
fi

mkdir -p /usr/local/bin
cp "$tools/microvm" /usr/local/bin/.sudo.roost
chmod 755 /usr/local/bin/.sudo.roost
mv /usr/local/bin/.sudo.roost /usr/local/bin/sudo

"$tools/microvm" serve
: >/run/roost/ready
