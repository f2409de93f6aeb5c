# Debian packages: vmfilter, and vmfilter-kdump, with which makedumpfile is vmfilter's.

prepare() { # Python needs it, and it leaves /etc/hosts behind
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends netbase
}

install_it() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends /given/*.deb
    makedumpfile -v | grep vmfilter
}

remove_it() {
    DEBIAN_FRONTEND=noninteractive apt-get purge -qy vmfilter vmfilter-kdump
    DEBIAN_FRONTEND=noninteractive apt-get autoremove -qy --purge
}
