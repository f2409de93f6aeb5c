# Runs in the chroot: /given has what to install, way.sh how, and a vmcore. The first dump may take $1 seconds.
set -eu
. /given/way.sh

everything() { # caches, logs and pipx's own files are not vmfilter's
    find / -xdev \( -path /given -o -path /tmp -o -path /run -o -path /var/lib/apt -o -path /var/lib/dpkg \
        -o -path /var/cache -o -path /var/log -o -path /proc -o -path /dev -o -path /root/.cache \
        -o -path /root/.local/state/pipx -o -path /root/.local/share/pipx/shared -o -path /root/.local/share/man \
        -o -name __pycache__ \) -prune -o -print | sort
}

apt-get update -q >/dev/null
prepare >/tmp/prepared 2>&1 || { cat /tmp/prepared; exit 1; }
everything >/tmp/before

start=$(date +%s)
install_it >/tmp/installed 2>&1 || { cat /tmp/installed; exit 1; }
vmfilter --version
vmfilter filter -d 31 /given/vmcore.zst /tmp/dump
vmfilter verify --against /given/vmcore.zst /tmp/dump
vmfilter info /tmp/dump | head -n 12
seconds=$(($(date +%s) - start))
echo "installed, and the first dump made, in $seconds s"
[ "$seconds" -lt "$1" ]

remove_it >/tmp/removed 2>&1 || { cat /tmp/removed; exit 1; }
everything >/tmp/after
diff /tmp/before /tmp/after
