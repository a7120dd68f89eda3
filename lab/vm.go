package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/lab/vm"
)

// machines are the commands for virtual machines.
func machines(name *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "vm",
		Short: "Virtual machines, for LVM, btrfs and a real reboot; no K3s on them",
	}
	c.AddCommand(vmBuild(), vmUp(name), vmDown(name), vmList(), vmSSH(name))
	return c
}

func vmBuild() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build the virtual machines' disks into the cache (LAB_CACHE), without making one",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			shop, say, err := newShop()
			if err != nil {
				return err
			}
			return vm.Build(c.Context(), shop.Cache, say)
		},
	}
}

func vmUp(name *string) *cobra.Command {
	var layout, format string
	c := &cobra.Command{
		Use:   "up",
		Short: "Make a virtual machine and print how to reach it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return badFormat(format)
			}
			shop, say, err := newShop()
			if err != nil {
				return err
			}
			m, err := vm.Up(c.Context(), *name, vm.Layout(layout), shop.Cache, say)
			if err != nil {
				return err
			}
			if format == "json" {
				return writeJSON(c.OutOrStdout(), m)
			}
			return writeRows(c.OutOrStdout(), [][2]string{
				{"name", m.Name}, {"layout", string(m.Layout)}, {"address", m.Address}, {"port", fmt.Sprint(m.Port)}, {"user", m.User},
				{"identity file", m.IdentityFile}, {"known hosts", m.KnownHosts}, {"console", m.Console},
			})
		},
	}
	c.Flags().StringVar(&layout, "layout", string(vm.Thick), "what the root lies on: plain (the disk), thick (logical volumes), thin (thin ones) or btrfs (subvolumes)")
	c.Flags().StringVarP(&format, "output", "o", "text", "how to print: text or json")
	return c
}

func vmDown(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a virtual machine and all it left",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return vm.Down(*name) },
	}
}

func vmList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name the virtual machines that are up",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			names, err := vm.List()
			for _, name := range names {
				fmt.Fprintln(c.OutOrStdout(), name)
			}
			return err
		},
	}
}

func vmSSH(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh [-- COMMAND…]",
		Short: "Log in to a virtual machine as root, or run a command there",
		RunE: func(c *cobra.Command, args []string) error {
			m, err := vm.Load(*name)
			if err != nil {
				return err
			}
			return attached(c.Context(), nil, m.SSH(args...))
		},
	}
}
