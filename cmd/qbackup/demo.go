package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/guest"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/restore"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/offline"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/dir"
)

const (
	demoDiskBytes = 256 << 20
	demoMachine   = ident.MachineName("demo")
)

func (p *program) demoCommand() *cobra.Command {
	var keep string
	c := &cobra.Command{
		Use:         "demo",
		Annotations: map[string]string{unconfigured: "it needs none"},
		Short:       "Show the main job from end to end, on an image made for it",
		Long: `Make a qcow2 image in a temporary folder, back it up, change it as a guest would, back it up again, restore both points
and compare every byte. Nothing outside that folder is touched and no other program is needed.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.demo(c.Context(), keep) },
	}
	c.Flags().StringVar(&keep, "keep", "", "do it in this new folder and leave it there")
	return c
}

func (p *program) demo(ctx context.Context, keep string) error {
	folder := keep
	if keep == "" {
		var err error
		if folder, err = os.MkdirTemp("", "qbackup-demo-"); err != nil {
			return fmt.Errorf("make a folder for the demo: %w", err)
		}
		defer os.RemoveAll(folder)
	} else if err := os.Mkdir(folder, 0o700); err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	d := &demo{program: p, folder: folder, image: filepath.Join(folder, "demo.qcow2"), random: rand.New(rand.NewPCG(2026, 1))}
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// demo is one showing. truth is what the guest wrote, kept in memory to compare with.
type demo struct {
	*program
	folder, image string
	random        *rand.Rand
	repository    *repo.Repository
	local         *state.State
	truth         []byte
}

func (d *demo) run(ctx context.Context) error {
	if err := d.makeImage(); err != nil {
		return err
	}
	if err := d.openRepository(ctx); err != nil {
		return err
	}
	d.say("\n1. The first backup reads everything and starts a bitmap in the image.")
	first, err := d.backup(ctx)
	if err != nil {
		return err
	}
	before := bytes.Clone(d.truth)

	d.say("\n2. The guest writes 20 times, and zeroes 8 MiB of what it had.")
	if err := d.change(); err != nil {
		return err
	}
	if err := d.showBitmap(ctx, false); err != nil {
		return err
	}
	d.say("\n3. The second backup reads only what the bitmap calls dirty, and empties it.")
	second, err := d.backup(ctx)
	if err != nil {
		return err
	}
	if err := d.checkIncremental(second); err != nil {
		return err
	}
	if err := d.showBitmap(ctx, true); err != nil {
		return err
	}
	d.say("\n4. Both points are restored and compared, byte by byte.")
	if err := d.restore(ctx, first, before); err != nil {
		return err
	}
	if err := d.restore(ctx, second, d.truth); err != nil {
		return err
	}
	d.say(`
The same with your own disk (the machine is off) and bucket:

  export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
  qbackup --repo s3:https://s3.example.com/BUCKET/PREFIX init
  qbackup --repo s3:https://s3.example.com/BUCKET/PREFIX backup /var/lib/libvirt/images/NAME.qcow2
  qbackup --repo s3:https://s3.example.com/BUCKET/PREFIX restore --machine NAME --to restored.qcow2 --format qcow2`)
	if d.json {
		return d.printJSON(map[string]any{"message_type": "demo", "ok": true, "first": first.Point, "second": second.Point})
	}
	return nil
}

// makeImage makes a qcow2 image whose guest has written here and there.
func (d *demo) makeImage() error {
	d.truth = make([]byte, demoDiskBytes)
	f, err := os.OpenFile(d.image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	defer f.Close()
	w, err := qcow2.Create(qcow2.NewOSFile(f), qcow2.CreateOptions{SizeBytes: demoDiskBytes})
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	d.say("A disk of %s in %s; its guest writes 64 times 1 MiB.", size(demoDiskBytes), d.image)
	return d.asGuest(func(g *guest.Disk) error {
		for range 64 {
			if err := d.write(g, 1<<20); err != nil {
				return err
			}
		}
		return nil
	})
}

// asGuest opens the image as a VM would, lets f write, and shuts down.
func (d *demo) asGuest(f func(*guest.Disk) error) error {
	file, err := os.OpenFile(d.image, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the image as a guest: %w", err)
	}
	defer file.Close()
	g, err := guest.Open(qcow2.NewOSFile(file))
	if err != nil {
		return fmt.Errorf("open the image as a guest: %w", err)
	}
	if err := f(g); err != nil {
		return err
	}
	if err := g.Close(); err != nil {
		return fmt.Errorf("shut the guest down: %w", err)
	}
	return nil
}

// write puts n bytes, half of them compressible, at a random place.
func (d *demo) write(g *guest.Disk, n int64) error {
	off := d.random.Int64N((demoDiskBytes-n)/4096) * 4096
	data := d.truth[off : off+n]
	for i := range data {
		data[i] = byte(d.random.Uint32())
		if i%2 == 0 {
			data[i] = 'q'
		}
	}
	if _, err := g.WriteAt(data, off); err != nil {
		return fmt.Errorf("write as a guest: %w", err)
	}
	return nil
}

func (d *demo) change() error {
	return d.asGuest(func(g *guest.Disk) error {
		for range 20 {
			if err := d.write(g, 32<<10); err != nil {
				return err
			}
		}
		const off, n = 100 << 20, 8 << 20
		clear(d.truth[off : off+n])
		return g.Zero(off, n)
	})
}

func (d *demo) openRepository(ctx context.Context) error {
	s, err := dir.Open(filepath.Join(d.folder, "repository"), dir.Options{Create: true})
	if err != nil {
		return err
	}
	if d.repository, _, err = repo.Init(ctx, s, repo.InitOptions{}); err != nil {
		return err
	}
	d.local, err = state.Open(filepath.Join(d.folder, "state"), state.Options{})
	return err
}

func (d *demo) backup(ctx context.Context) (agent.Summary, error) {
	summary, err := agent.Backup(ctx, agent.Job{
		Machine: demoMachine, Repository: d.repository, State: d.local.Repository(d.repository.ID()),
		Open: func(family ident.FamilyID) source.Machine {
			return offline.New([]offline.Image{{Name: "disk", Path: d.image}}, offline.Options{Family: family})
		},
	}, agent.Options{Tool: "qbackup " + programVersion()})
	if err != nil {
		return summary, err
	}
	for _, disk := range summary.Disks {
		d.say("   %s", diskLine(disk))
	}
	return summary, nil
}

func (d *demo) checkIncremental(s agent.Summary) error {
	if disk := s.Disks[0]; disk.Mode != "incremental" || disk.ReadBytes > disk.DirtyBytes+4<<20 {
		return fmt.Errorf("the second backup should read only dirty clusters: %s", diskLine(disk))
	}
	return nil
}

// showBitmap shows how many bits are set, and with empty demands that none is.
func (d *demo) showBitmap(ctx context.Context, empty bool) error {
	list, err := listBitmaps(ctx, d.image)
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return fmt.Errorf("the image should have one bitmap, it has %d", len(list))
	}
	d.say("   bitmap %s: %s dirty", list[0].Name, size(list[0].DirtyBytes))
	if empty && list[0].DirtyBytes != 0 {
		return fmt.Errorf("the bitmap should be empty")
	}
	return nil
}

func (d *demo) restore(ctx context.Context, s agent.Summary, want []byte) error {
	point, err := d.repository.OpenPoint(ctx, demoMachine, s.Point)
	if err != nil {
		return err
	}
	disk, err := point.Disk("disk")
	if err != nil {
		return err
	}
	path := filepath.Join(d.folder, s.Point.String()+".raw")
	f, err := restore.CreateFile(path, disk.Size(), false)
	if err != nil {
		return err
	}
	if err := fill(ctx, disk, f, point.Record(), "raw", restore.Options{}); err != nil {
		return err
	}
	if err := f.Publish(); err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("point %s differs from what the guest wrote", s.Point)
	}
	d.say("   point %s: %d bytes, all equal", s.Point, len(got))
	return nil
}
