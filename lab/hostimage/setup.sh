#!/bin/sh
# Turns a Debian with the lab's packages into the lab's host. Runs once, inside the tree.
set -eu
chmod 0755 /usr/local/lib/lab/boot

# Each lab brings its own host keys.
rm -f /etc/ssh/ssh_host_*
# K3s brings its own containerd; a second one would only share the kernel with it.
systemctl disable containerd.service
systemctl enable ssh.service lab-boot.service

# A container has no terminals, disks, clocks or kernel modules of its own, and a
# disposable host needs no upkeep. Each of these would cost boot time or fail.
systemctl mask \
	getty.target console-getty.service systemd-logind.service systemd-ask-password-wall.path systemd-ask-password-console.path \
	systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
	systemd-modules-load.service systemd-pstore.service systemd-remount-fs.service systemd-random-seed.service \
	systemd-hwdb-update.service systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-firstboot.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer
systemctl set-default multi-user.target

# Journal in memory: what a disposable host logs is not kept.
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\n' >/etc/systemd/journald.conf.d/lab.conf

rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
