#!/bin/sh
# Runs in the capture kernel of bench/capture.py: vmfilter and makedumpfile in turn, each into a pipe that is discarded.
for round in 1 2 3 4 5; do
    for codec in l z; do
        measure "/mnt/vmfilter.$codec.$round.json" vmfilter-makedumpfile -F -$codec -d 31 --message-level 0 /proc/vmcore >/dev/null
        measure "/mnt/makedumpfile.$codec.$round.json" peer -F -$codec -d 31 --message-level 0 /proc/vmcore >/dev/null
    done
done
stat -c %s /proc/vmcore >/mnt/vmcore.size
umount /mnt
