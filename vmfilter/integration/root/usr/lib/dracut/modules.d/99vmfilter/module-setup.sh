#!/bin/bash
# dracut module: brings vmfilter into the initramfs, with its interpreter, the modules and the shared objects that it
# needs. The commands are /usr/bin/vmfilter and /usr/bin/vmfilter-makedumpfile there.
#
# It is in the initramfs that kdump builds, and in others where it is asked for (dracut --add vmfilter).
# vmfilter_makedumpfile=yes in a file of /etc/dracut.conf.d makes it be the makedumpfile of the initramfs too.

check() {
    # kdump's mkdumprd says so in the environment; 255 is: only where it is asked for
    [[ -n ${IN_KDUMP-} ]] && return 0
    return 255
}

depends() {
    return 0
}

install() {
    local objects path
    # shellcheck disable=SC2154 # initdir is dracut's
    objects=$(@PYTHON@ -I -m vmfilter kdump collect "$initdir") || {
        # An initramfs of kdump without what makes the dump is worse than none: that is seen before the crash.
        dfatal "vmfilter cannot be put into the initramfs; where it is no longer installed, remove ${BASH_SOURCE[0]%/*}"
        exit 1
    }
    mapfile -t objects <<<"$objects"
    inst_multiple "${objects[@]}" || exit 1
    [[ ${vmfilter_makedumpfile-} == yes ]] || return 0
    # Where kdump's own module, which comes before this one, has put makedumpfile, and where PATH finds it.
    for path in /usr/sbin/makedumpfile /usr/bin/makedumpfile; do
        ln -sfn /usr/bin/vmfilter-makedumpfile "$initdir$path"
    done
}
