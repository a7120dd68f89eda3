#!/bin/sh
# Installer of the lab's K3s-shaped node. It takes the variables that K3s's
# installer documents and leaves the same files behind; it is not K3s's script,
# and has nothing to download from.
#
#   INSTALL_K3S_EXEC           command and flags of the service
#   INSTALL_K3S_NAME           name of the service: k3s-NAME
#   INSTALL_K3S_TYPE           type of the service: notify or exec
#   INSTALL_K3S_SKIP_DOWNLOAD  true, binary: the binary is in place already
#   INSTALL_K3S_SKIP_ENABLE    true: do not enable or start the service
#   INSTALL_K3S_SKIP_START     true: do not start the service
#   INSTALL_K3S_FORCE_RESTART  true: restart even when nothing changed
#   INSTALL_K3S_BIN_DIR        where the binary and the links are (/usr/local/bin)
#   INSTALL_K3S_SYSTEMD_DIR    where the unit and its env file go
#   INSTALL_K3S_SYMLINK        skip, force: what to do with kubectl, ctr, crictl
#   INSTALL_K3S_VERSION        must be the version in place: nothing is downloaded
#   K3S_*, CONTAINERD_*, proxy variables: kept in the service's env file
set -eu

info() { echo '[INFO] ' "$@"; }
warn() { echo '[WARN] ' "$@" >&2; }
fatal() { echo '[ERROR] ' "$@" >&2; exit 1; }

# quoted prints its arguments for the unit's ExecStart, one line each.
quoted() {
	for arg in "$@"; do
		printf "\t'%s' \\\\\\n" "$(printf '%s' "$arg" | sed "s/'/'\\\\''/g")"
	done
}

hashes() { sha256sum "$BIN_DIR/k3s" "$UNIT" "$ENV_FILE" 2>&1 || true; }

settings() {
	[ "$(id -u)" -eq 0 ] || fatal 'run this as root'
	[ -d /run/systemd/system ] || fatal 'the lab installs for systemd, which does not run here'

	# The words of INSTALL_K3S_EXEC, which may be quoted, then the arguments.
	lines=$(
		printf '%s\n' "${INSTALL_K3S_EXEC:-}" | xargs -r printf '%s\n'
		for arg in "$@"; do printf '%s\n' "$arg"; done
	) || fatal 'INSTALL_K3S_EXEC has a quote without its other half'
	old_ifs=$IFS
	IFS='
'
	set -f
	# shellcheck disable=SC2086 # one word a line
	set -- $lines
	set +f
	IFS=$old_ifs

	# A first word is the command; without one, K3S_URL decides.
	case "${1:-}" in
	-* | '')
		if [ -n "${K3S_URL:-}" ]; then
			[ -n "${K3S_TOKEN:-}" ] || [ -n "${K3S_TOKEN_FILE:-}" ] || fatal 'K3S_URL is set, but neither K3S_TOKEN nor K3S_TOKEN_FILE is'
			COMMAND=agent
		else
			COMMAND=server
		fi
		;;
	*)
		COMMAND=$1
		shift
		;;
	esac
	EXEC_LINES=$(quoted "$@")

	if [ -n "${INSTALL_K3S_NAME:-}" ]; then
		NAME=k3s-$INSTALL_K3S_NAME
	elif [ "$COMMAND" = server ]; then
		NAME=k3s
	else
		NAME=k3s-$COMMAND
	fi
	if [ -n "${INSTALL_K3S_TYPE:-}" ]; then
		TYPE=$INSTALL_K3S_TYPE
	elif [ "$COMMAND" = server ]; then
		TYPE=notify
	else
		TYPE=exec
	fi
	BIN_DIR=${INSTALL_K3S_BIN_DIR:-/usr/local/bin}
	SYSTEMD_DIR=${INSTALL_K3S_SYSTEMD_DIR:-/etc/systemd/system}
	UNIT=$SYSTEMD_DIR/$NAME.service
	ENV_FILE=$UNIT.env
	KILLALL=$BIN_DIR/k3s-killall.sh
	if [ "$COMMAND" = agent ]; then
		UNINSTALL=$BIN_DIR/k3s-agent-uninstall.sh
	else
		UNINSTALL=$BIN_DIR/$NAME-uninstall.sh
	fi
}

binary() {
	case "${INSTALL_K3S_SKIP_DOWNLOAD:-false}" in
	true | binary) info 'Skipping k3s download and verify' ;;
	*) fatal "nothing can be downloaded in the lab: put the k3s binary at $BIN_DIR/k3s and set INSTALL_K3S_SKIP_DOWNLOAD=true" ;;
	esac
	[ -x "$BIN_DIR/k3s" ] || fatal "Executable k3s binary not found at $BIN_DIR/k3s"
	if [ -n "${INSTALL_K3S_VERSION:-}" ]; then
		have=$("$BIN_DIR/k3s" --version | sed -n 's/^k3s version \([^ ]*\).*/\1/p')
		[ "$have" = "$INSTALL_K3S_VERSION" ] || fatal "INSTALL_K3S_VERSION is $INSTALL_K3S_VERSION, but $BIN_DIR/k3s is $have and nothing can be downloaded in the lab"
	fi
}

links() {
	[ "${INSTALL_K3S_SYMLINK:-}" != skip ] || return 0
	for cmd in kubectl crictl ctr; do
		if [ -e "$BIN_DIR/$cmd" ] && [ "${INSTALL_K3S_SYMLINK:-}" != force ]; then
			info "Skipping $BIN_DIR/$cmd symlink to k3s, already exists"
			continue
		fi
		other=$(command -v "$cmd" 2>/dev/null || true)
		if [ -n "$other" ] && [ "${INSTALL_K3S_SYMLINK:-}" != force ]; then
			info "Skipping $BIN_DIR/$cmd symlink to k3s, command exists in PATH at $other"
			continue
		fi
		info "Creating $BIN_DIR/$cmd symlink to k3s"
		ln -sf k3s "$BIN_DIR/$cmd"
	done
}

killall_script() {
	info "Creating killall script $KILLALL"
	cat >"$KILLALL" <<'SCRIPT'
#!/bin/sh
# Stops K3s and all that it started: services, containers, mounts, network.
[ "$(id -u)" -eq 0 ] || exec sudo --preserve-env=K3S_DATA_DIR "$0" "$@"
set -x
K3S_DATA_DIR=${K3S_DATA_DIR:-/var/lib/rancher/k3s}

for unit in /etc/systemd/system/k3s*.service; do
	[ -s "$unit" ] && systemctl stop "$(basename "$unit")"
done

# Shims bear the data directory in their command line; their children are the containers.
shims() {
	for proc in /proc/[0-9]*; do
		tr '\0' ' ' <"$proc/cmdline" 2>/dev/null | grep -q "^${K3S_DATA_DIR%/}/data/[^/]*/bin/containerd-shim" && echo "${proc#/proc/}"
	done
}
descendants() {
	for pid in "$@"; do
		echo "$pid"
		# shellcheck disable=SC2046 # a list of numbers
		descendants $(cat "/proc/$pid/task/"*/children 2>/dev/null || ps -o pid= --ppid "$pid")
	done
}
# shellcheck disable=SC2046
victims=$({ set +x; } 2>/dev/null; descendants $(shims); set -x)
# shellcheck disable=SC2086
[ -z "$victims" ] || kill -9 $victims 2>/dev/null

unmount_below() {
	# Deepest first, so that nothing is in use.
	awk -v path="$1" 'index($2, path) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r mount; do
		mount=$(printf '%b' "$mount")
		umount -f "$mount" || umount -l "$mount"
		case $mount in
		/run/netns/*) rm -f "$mount" ;;
		esac
		[ -z "${2:-}" ] || rm -rf "$mount"
	done
}
unmount_below /run/k3s remove
unmount_below /var/lib/kubelet/pods remove
unmount_below /var/lib/kubelet/plugins remove
unmount_below /run/netns/cni-
for overlay in "$K3S_DATA_DIR/agent/containerd"; do
	unmount_below "$overlay/"
done

ip netns show 2>/dev/null | awk '/^cni-/ { print $1 }' | xargs -r -n 1 ip netns delete
ip link show 2>/dev/null | awk -F': ' '/master cni0/ { sub(/@.*/, "", $2); print $2 }' | xargs -r -n 1 ip link delete
for link in cni0 flannel.1 flannel-v6.1 flannel-wg flannel-wg-v6 kube-ipvs0; do
	ip link show "$link" >/dev/null 2>&1 && ip link delete "$link"
done
rm -rf /var/lib/cni/
for tables in iptables ip6tables; do
	$tables-save | grep -v KUBE- | grep -v CNI- | grep -iv flannel | $tables-restore
done
exit 0
SCRIPT
	chmod 755 "$KILLALL"
}

uninstall_script() {
	info "Creating uninstall script $UNINSTALL"
	{
		cat <<SCRIPT
#!/bin/sh
# Removes K3s and everything below its data directory, the volumes included.
[ "\$(id -u)" -eq 0 ] || exec sudo --preserve-env=K3S_DATA_DIR "\$0" "\$@"
set -x
NAME='$NAME'
BIN_DIR='$BIN_DIR'
SYSTEMD_DIR='$SYSTEMD_DIR'
SCRIPT
		cat <<'SCRIPT'
K3S_DATA_DIR=${K3S_DATA_DIR:-/var/lib/rancher/k3s}

"$BIN_DIR/k3s-killall.sh"

systemctl disable "$NAME"
systemctl reset-failed "$NAME"
systemctl daemon-reload
rm -f "$SYSTEMD_DIR/$NAME.service" "$SYSTEMD_DIR/$NAME.service.env"

remove_uninstall() { rm -f "$BIN_DIR/$NAME-uninstall.sh"; }
trap remove_uninstall EXIT

# Another K3s service on this host may need what is left.
for unit in "$SYSTEMD_DIR"/k3s*.service; do
	if [ -s "$unit" ]; then
		set +x
		echo 'Additional k3s services installed, skipping uninstall of k3s'
		set -x
		exit
	fi
done

for cmd in kubectl crictl ctr; do
	[ -L "$BIN_DIR/$cmd" ] && rm -f "$BIN_DIR/$cmd"
done

# What is mounted below the data directory stays mounted, and loses its contents.
clean_mounted() {
	dir=$1
	awk '{ print $2 }' /proc/self/mounts | while read -r mount; do
		mount=$(printf '%b' "$mount")
		case $mount in
		"$dir"/* | "$dir")
			find "$mount" -mindepth 1 -maxdepth 1 -exec rm -rf {} + 2>/dev/null
			;;
		esac
	done
	rm -rf "$dir"/* "$dir"
}
rm -rf /etc/rancher/k3s
rm -rf /run/k3s
rm -rf /run/flannel
clean_mounted "$K3S_DATA_DIR"
rm -rf /var/lib/kubelet/* /var/lib/kubelet
rm -f "$BIN_DIR/k3s" "$BIN_DIR/k3s-killall.sh"
exit 0
SCRIPT
	} >"$UNINSTALL"
	chmod 755 "$UNINSTALL"
}

env_file() {
	info "env: Creating environment file $ENV_FILE"
	mkdir -p "$SYSTEMD_DIR"
	rm -f "$ENV_FILE"
	(umask 077 && : >"$ENV_FILE")
	env | grep -E '^(K3S_|CONTAINERD_)' | sed 's/^\([^=]*\)=\(.*\)$/\1='"'"'\2'"'"'/' >>"$ENV_FILE" || true
	env | grep -Ei '^(NO|HTTP|HTTPS)_PROXY=' >>"$ENV_FILE" || true
}

unit_file() {
	info "systemd: Creating service file $UNIT"
	cat >"$UNIT" <<UNIT_END
[Unit]
Description=Lightweight Kubernetes
Documentation=https://k3s.io
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type=$TYPE
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-$ENV_FILE
KillMode=process
Delegate=yes
User=root
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart=$BIN_DIR/k3s \\
    $COMMAND \\
$EXEC_LINES

UNIT_END
}

start() {
	if [ "${INSTALL_K3S_SKIP_ENABLE:-false}" = true ]; then
		systemctl daemon-reload
		return 0
	fi
	info "systemd: Enabling $NAME unit"
	systemctl enable "$UNIT" >/dev/null
	systemctl daemon-reload
	[ "${INSTALL_K3S_SKIP_START:-false}" != true ] || return 0
	# As K3s's: the configuration files are not part of what is compared.
	if [ "$BEFORE" = "$(hashes)" ] && [ "${INSTALL_K3S_FORCE_RESTART:-false}" != true ]; then
		info 'No change detected so skipping service start'
		return 0
	fi
	info "systemd: Starting $NAME"
	systemctl restart "$NAME"
}

settings "$@"
binary
BEFORE=$(hashes)
links
killall_script
uninstall_script
env_file
unit_file
start
