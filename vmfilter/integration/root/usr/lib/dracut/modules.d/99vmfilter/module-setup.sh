#!/bin/bash
# dracut module: adds vmfilter to an initramfs, with the interpreter, modules and shared objects that it needs. The
# commands are /usr/bin/vmfilter and /usr/bin/vmfilter-makedumpfile.
#
# Included when kdump builds the initramfs, or on request (dracut --add vmfilter). vmfilter_makedumpfile=yes in a file
# of /etc/dracut.conf.d installs vmfilter as makedumpfile too.

check() {
    # Fedora's mkdumprd sets IN_KDUMP, SUSE's asks dracut for the module kdump. 255 means: only on request.
    [[ -n ${IN_KDUMP-} ]] && return 0
    [[ " ${dracutmodules-} ${add_dracutmodules-} ${force_add_dracutmodules-} " == *" kdump "* ]] && return 0
    return 255
}

depends() {
    return 0
}

install() {
    local objects path
    # shellcheck disable=SC2154 # initdir is dracut's
    objects=$(@PYTHON@ -I -m vmfilter kdump collect "$initdir") || {
        # Fail the build: a kdump initramfs that cannot dump would be noticed only after a crash.
        dfatal "cannot add vmfilter to the initramfs; if vmfilter is no longer installed, remove ${BASH_SOURCE[0]%/*}"
        exit 1
    }
    mapfile -t objects <<<"$objects"
    inst_multiple "${objects[@]}" || exit 1
    [[ ${vmfilter_makedumpfile-} == yes ]] || return 0
    # kdump's own module, which runs before this one, installs makedumpfile at one of these paths: replace it.
    for path in /usr/sbin/makedumpfile /usr/bin/makedumpfile; do
        ln -sfn /usr/bin/vmfilter-makedumpfile "$initdir$path"
    done
}
