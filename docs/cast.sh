#!/bin/sh
# Makes docs/tutorial.cast, and of it docs/tutorial.svg, which plays anywhere: the commands of docs/tutorial.md whose
# output tests compare, typed into a terminal. asciinema (PyPI) records, svg-term (npm) draws. Run docs/quickstart.sh
# first.
set -euf # no name is expanded while a command is typed
cd "$(dirname "$0")/.."

if [ "${1:-}" = play ]; then
    cd build/quickstart
    sed -n '/^```console$/,/^```$/s/^\$ //p' ../../docs/tutorial.md | grep -v ^drgn | while read -r command; do
        printf '$'
        for word in $command; do # by words: a frame for each letter makes a drawing of 270 KB
            sleep 0.1
            printf ' %s' "$word"
        done
        echo
        sh -c "$command" </dev/null
        sleep 2
    done
    exit
fi

tools=build/cast
[ -x $tools/bin/asciinema ] || { .venv/bin/python -m venv $tools && $tools/bin/pip install -q 'asciinema>=2.4,<3'; }
[ -x $tools/node_modules/.bin/svg-term ] || npm install --silent --prefix $tools svg-term-cli
rm -f build/quickstart/dump build/quickstart/second
.venv/bin/python tests/support/unpack.py testdata/x86_64-6.12-two-kernels.vmcore.zst build/quickstart/two
PATH=$PWD/.venv/bin:$PATH $tools/bin/asciinema rec --quiet --overwrite --cols 80 --rows 24 --idle-time-limit 2 \
    --command 'sh docs/cast.sh play' docs/tutorial.cast
$tools/node_modules/.bin/svg-term --in docs/tutorial.cast --out docs/tutorial.svg --window --no-cursor
ls -l docs/tutorial.cast docs/tutorial.svg
