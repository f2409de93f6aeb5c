# pipx, from a wheel.

prepare() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends pipx
    pipx list
}

install_it() {
    pipx install /given/vmfilter-*
    PATH=/root/.local/bin:$PATH
}

remove_it() {
    pipx uninstall vmfilter
}
