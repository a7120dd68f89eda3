#!/bin/sh
# Turns a Debian with the packages into the disk image of a lab's virtual machine. Runs once, inside the tree.
set -eu
chmod 0755 /usr/local/lib/lab/make-disks

# Each machine brings its own host keys.
rm -f /etc/ssh/ssh_host_*
echo lab >/etc/hostname
: >/etc/machine-id
systemctl enable ssh.service systemd-networkd.service lab-seed.service
systemctl mask systemd-networkd-wait-online.service getty.target e2scrub_reap.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer
systemctl set-default multi-user.target

# A small initrd, which emulation unpacks in seconds, with what a root on LVM or btrfs takes.
echo MODULES=list >/etc/initramfs-tools/conf.d/lab
printf '%s\n' virtio_pci virtio_blk ext4 btrfs crc32c_generic dm_mod dm_snapshot dm_thin_pool >>/etc/initramfs-tools/modules
update-initramfs -u

# Where a test makes changes.
mkdir -p /var/lib/rancher

rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
