# A virtual environment, from a wheel, or from a source distribution with the libraries that this finds.

prepare() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-venv
    case $(ls /given) in
    *.tar.gz*) DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-dev gcc libc6-dev \
        libisal-dev libdeflate-dev liblzo2-dev libsnappy-dev libzstd-dev liblz4-dev ;;
    esac
}

install_it() {
    python3 -m venv /opt/vmfilter
    /opt/vmfilter/bin/pip install /given/vmfilter-*
    PATH=/opt/vmfilter/bin:$PATH
}

remove_it() {
    rm -r /opt/vmfilter
}
