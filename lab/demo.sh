#!/bin/bash
# From nothing to a migrated lab host: prints the plan, the cluster before, the
# run, the verification after, and how long API and web proxy were away.
# KEEP=1 leaves the lab up.
set -euo pipefail
cd "$(dirname "$0")/.."
lab() {
	command=$1
	shift
	bin/lab "$command" --name "${LAB:-demo}" "$@"
}
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" <<<"$json" | head -1; }
say() { printf '\n=== %s\n\n' "$*"; }
plan=
watcher=
finish() {
	status=$?
	[ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true
	if [ -n "${KEEP:-}" ]; then
		say "The lab is kept. To look around:"
		echo "  bin/lab ssh --name ${LAB:-demo}"
		echo "  bin/lab kubectl --name ${LAB:-demo} -- get pods -A -o wide"
		echo "  bin/migrate verify -f $plan"
		echo "  bin/lab down --name ${LAB:-demo}    # removes all of it"
	else
		lab down
		rm -rf "$work"
	fi
	exit $status
}

say "A K3s host, installed IPv4-only, with a platform on it"
json=$(lab up -o json)
work=$(mktemp -d)
trap finish EXIT
plan=$work/plan.yaml
lab plan >"$plan"
lab secrets >"$work/secrets"
host=$(sed -n '/"host": {/,/}/s/.*"ipv4": "\([^"]*\)".*/\1/p' <<<"$json")
lab kubectl -- get nodes,pods -A -o wide

say "Before: pods without IPv6, and no way out over it (migrate verify)"
bin/migrate verify -f "$plan" || [ $? -eq 4 ]

say "What will be done (migrate plan)"
bin/migrate plan -f "$plan"

# Every 200 ms, one try of the API and of the web proxy: the times at which
# they do not answer.
watch() {
	while :; do
		for target in "API https://$host:6443/livez" "web http://$host/"; do
			set -- $target
			code=$(curl -sk -o /dev/null -m 1 -w '%{http_code}' "$2") || code=000
			echo "$1 $(date +%s.%N) $code"
		done
		sleep 0.2
	done
}
watch >"$work/watch" 2>/dev/null &
watcher=$!

say "What OpenBao keeps for the platform, read past migrate (lab secrets)"
grep '"secret/data/sentinel' "$work/secrets"
echo "  and $(wc -l <"$work/secrets") answers in all, every version of every secret among them"

say "The migration (migrate run)"
bin/migrate run -f "$plan" --yes

sleep 2
kill "$watcher"; wait "$watcher" 2>/dev/null || true; watcher=
say "OpenBao after it"
lab secrets >"$work/secrets.after"
grep '"secret/data/sentinel' "$work/secrets.after"
cmp "$work/secrets" "$work/secrets.after"
echo "  all $(wc -l <"$work/secrets.after") answers are the same as before"

say "How long they were away, measured past migrate"
for target in API web; do
	# 000: nothing answered; 502, 503: the proxy has no backend yet. The API
	# answers 401 to strangers, which is an answer.
	awk -v target=$target '
		$1 != target { next }
		$3 == "000" || $3 ~ /^5/ { if (!from) from = $2; next }
		from { away = $2 - from; total += away; if (away > longest) longest = away; from = 0 }
		END { printf "  %-4s away for %.1f s in all, %.1f s at the longest\n", target, total, longest }' "$work/watch"
done
echo "  as a demo it runs on one machine with its lab; on a real host images are pulled from afar"
