package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source/offline"
)

const defaultGranularity = 64 << 10

func (p *program) bitmapCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bitmap",
		Short: "List, add, reset and remove the dirty bitmaps of an image that no VM has open",
		Args:  arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return usagef("say list, add, reset or remove; see %s --help", c.CommandPath())
		},
	}
	c.AddCommand(p.bitmapListCommand(), p.bitmapAddCommand(), p.bitmapResetCommand(), p.bitmapRemoveCommand())
	return c
}

func (p *program) bitmapListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list IMAGE",
		Short: "List the bitmaps of an image",
		Long: `List the bitmaps of an image. A name that begins with qb1- is one of qbackup's. One that does not record is frozen.
DIRTY is the number of set bits times the granularity.`,
		Example: `  qbackup bitmap list /var/lib/libvirt/images/web1.qcow2`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, args []string) error { return p.bitmapList(c.Context(), args[0]) },
	}
}

func (p *program) bitmapAddCommand() *cobra.Command {
	granularity := int64(defaultGranularity)
	c := &cobra.Command{
		Use:   "add IMAGE NAME",
		Short: "Add an empty recording bitmap",
		Long: `Add an empty bitmap that records what QEMU writes from then on. For other programs' use: qbackup adds its own at the
first backup.`,
		Example: `  qbackup bitmap add /var/lib/libvirt/images/web1.qcow2 mine`,
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := refuseOurs(args[1], "adds its own"); err != nil {
				return err
			}
			spec := qcow2.BitmapSpec{Name: args[1], GranularityBytes: granularity, Enabled: true}
			return p.editBitmaps(args[0], "added "+args[1], func(e *qcow2.Editor) error { return e.Replace([]qcow2.BitmapSpec{spec}, nil) })
		},
	}
	c.Flags().Int64Var(&granularity, "granularity-bytes", granularity, "what one bit stands for: a power of two from 512 to 2147483648")
	return c
}

func (p *program) bitmapResetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reset IMAGE NAME",
		Short: "Empty a bitmap, safely at every instant",
		Long: `Empty a bitmap in place. A crash at any instant leaves an image that QEMU opens. Bitmaps of qbackup's are refused: their
bits may go only when a point holds what they mark.`,
		Example: `  qbackup bitmap reset /var/lib/libvirt/images/web1.qcow2 mine`,
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := refuseOurs(args[1], "resets its own, when a point holds what is dirty"); err != nil {
				return err
			}
			return p.editBitmaps(args[0], "reset "+args[1], func(e *qcow2.Editor) error { return e.Reset(args[1]) })
		},
	}
}

func (p *program) bitmapRemoveCommand() *cobra.Command {
	var ours bool
	c := &cobra.Command{
		Use:   "remove IMAGE [NAME]",
		Short: "Remove a bitmap, or with --ours all of qbackup's",
		Long: `Remove a bitmap. With --ours all bitmaps that qbackup made in this image go, of whatever repository; the next
backup reads everything once and starts a new one.`,
		Example: `  qbackup bitmap remove /var/lib/libvirt/images/web1.qcow2 mine
  qbackup bitmap remove --ours /var/lib/libvirt/images/web1.qcow2`,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			if ours == (len(args) == 2) {
				return usagef("name a bitmap, or say --ours")
			}
			return p.bitmapRemove(c.Context(), args)
		},
	}
	c.Flags().BoolVar(&ours, "ours", false, "all bitmaps that qbackup made")
	return c
}

// refuseOurs keeps people from making a bitmap that lies: one of ours must hold all that was written since its point.
func refuseOurs(name, instead string) error {
	if strings.HasPrefix(name, ident.BitmapPrefix) {
		return usagef("names that begin with %s belong to qbackup, which %s", ident.BitmapPrefix, instead)
	}
	return nil
}

func (p *program) bitmapRemove(ctx context.Context, args []string) error {
	names := args[1:]
	if len(names) == 0 {
		list, err := listBitmaps(ctx, args[0])
		if err != nil {
			return err
		}
		for _, b := range list {
			if _, ours := ident.ParseBitmapName(b.Name); ours {
				names = append(names, b.Name)
			}
		}
	}
	if len(names) == 0 {
		p.say("%s has no bitmap of qbackup's", args[0])
		return nil
	}
	return p.editBitmaps(args[0], "removed "+strings.Join(names, ", "), func(e *qcow2.Editor) error { return e.Replace(nil, names) })
}

func (p *program) editBitmaps(image, done string, edit func(*qcow2.Editor) error) error {
	if err := offline.EditBitmaps(image, edit); err != nil {
		return err
	}
	if p.json {
		return p.printJSON(map[string]string{"message_type": "bitmap", "image": image, "message": done})
	}
	p.say("%s: %s", image, done)
	return nil
}

// listedBitmap is one bitmap of bitmap list --json.
type listedBitmap struct {
	Name             string `json:"name"`
	GranularityBytes int64  `json:"granularity_bytes"`
	Recording        bool   `json:"recording"`
	Ours             bool   `json:"ours"`
	DirtyBytes       int64  `json:"dirty_bytes"` // -1: unknown
	Problem          string `json:"problem,omitempty"`
}

func listBitmaps(ctx context.Context, image string) ([]listedBitmap, error) {
	found, err := offline.ListBitmaps(ctx, image)
	if err != nil {
		return nil, err
	}
	list := []listedBitmap{}
	for _, b := range found {
		_, ours := ident.ParseBitmapName(b.Name)
		list = append(list, listedBitmap{b.Name, b.GranularityBytes, b.Enabled, ours, b.DirtyBytes, b.Problem})
	}
	return list, nil
}

// printable quotes a name that would not print as it is: images are not trusted, and terminals obey control characters.
func printable(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` {
		return quoted
	}
	return name
}

func (p *program) bitmapList(ctx context.Context, image string) error {
	list, err := listBitmaps(ctx, image)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(list)
	}
	if len(list) == 0 {
		p.say("%s has no bitmaps", image)
		return nil
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BITMAP\tGRANULARITY\tRECORDING\tDIRTY\t")
	for _, b := range list {
		dirty := size(b.DirtyBytes)
		if b.Problem != "" {
			dirty = b.Problem
		}
		recording := "no"
		if b.Recording {
			recording = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", printable(b.Name), size(b.GranularityBytes), recording, dirty)
	}
	return w.Flush()
}
