package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/configs"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/retention"
	"github.com/qbackup/qbackup/internal/schedule"
	"github.com/qbackup/qbackup/internal/store/limit"
	"github.com/qbackup/qbackup/internal/store/location"
	"github.com/qbackup/qbackup/internal/target"
)

// unconfigured marks commands that work without a configuration, and also beside one that is wrong.
const unconfigured = "unconfigured"

// configPath is the file to read, and whether somebody named it.
func (p *program) configPath() (path string, named bool) {
	for _, path := range []string{p.configFile, os.Getenv("QBACKUP_CONFIG")} {
		if path != "" {
			return path, true
		}
	}
	return configs.DefaultPath, false
}

// loadConfig reads the configuration. Without a file there is an empty one, unless somebody named the file.
func (p *program) loadConfig() (*configs.Config, error) {
	path, named := p.configPath()
	c, err := configs.Load(path, configChecks())
	if errors.Is(err, fs.ErrNotExist) && !named {
		return configs.Parse(nil, path, configChecks())
	}
	return c, err
}

func configChecks() configs.Checks {
	return configs.Checks{
		Place: func(place string) error {
			if _, err := location.Parse(place); err != nil {
				return errors.New("not a place for a repository; write a folder, s3://BUCKET/PREFIX or s3:http(s)://HOST[:PORT]/BUCKET[/PREFIX]")
			}
			return nil
		},
		Machine: func(name string) error {
			if _, err := ident.ParseMachineName(name); err != nil {
				return errors.New("not a machine's name: it has 1 to 128 of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit")
			}
			return nil
		},
		Schedule: func(expression string) error {
			_, err := schedule.Parse(expression)
			return err
		},
	}
}

// configure is run before every command.
func (p *program) configure(c *cobra.Command) error {
	if !c.HasParent() {
		return nil // there is no command, which is said better than what is wrong with the configuration
	}
	for at := c; at != nil; at = at.Parent() {
		// The library makes the commands for shells itself.
		if at.Annotations[unconfigured] != "" || at.Name() == "completion" || at.Name() == "help" {
			return nil
		}
	}
	return p.applyConfig()
}

// applyConfig reads the configuration. What a flag or the environment says is not replaced.
func (p *program) applyConfig() error {
	config, err := p.loadConfig()
	if err != nil {
		return err
	}
	p.config.Store(config)
	if p.repository == "" {
		p.repository = config.Repository
	}
	if p.stateDir == "" && os.Getenv("QBACKUP_STATE_DIR") == "" && os.Getenv("STATE_DIRECTORY") == "" {
		p.stateDir = config.StateDir
	}
	return nil
}

// getenv is the environment as the store sees it: the configuration's credentials stand where it says nothing.
func (p *program) getenv() (func(string) string, error) {
	credentials := p.configured().Credentials
	file := credentials.File
	if credentials.Systemd != "" {
		folder := os.Getenv("CREDENTIALS_DIRECTORY")
		if folder == "" {
			return nil, fmt.Errorf("%w: credentials.systemd: systemd has passed no credentials; start qbackup by its unit, with LoadCredential=%s:FILE", configs.ErrInvalid, credentials.Systemd)
		}
		file = filepath.Join(folder, credentials.Systemd)
	}
	own := map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": credentials.Profile}
	if file != "" && os.Getenv("AWS_SHARED_CREDENTIALS_FILE") == "" {
		if err := configs.CheckSecret(file); err != nil {
			return nil, err
		}
	}
	return func(name string) string {
		if value := os.Getenv(name); value != "" {
			return value
		}
		return own[name]
	}, nil
}

// configured is the configuration; of a command that has none, an empty one.
func (p *program) configured() *configs.Config {
	if c := p.config.Load(); c != nil {
		return c
	}
	return &configs.Config{}
}

// limits are those of the store.
func (p *program) limits() limit.Options {
	l := p.configured().Limits
	o := limit.Options{RequestsPerSecond: float64(l.Requests)}
	if len(l.Upload) > 0 {
		o.Upload = func() int64 { return int64(l.Upload.At(time.Now())) }
	}
	return o
}

// entries are the machines of the configuration.
func entries(c *configs.Config) []fleet.Entry {
	var list []fleet.Entry
	for _, m := range c.Machines {
		e := fleet.Entry{
			Spec: target.Spec{
				Name: m.Name, Images: m.Images, Monitor: m.QMP, Domain: m.Libvirt, URI: m.LibvirtURI, Hold: m.Hold, AllowDirs: m.AllowDirs,
				ScratchDir: c.ScratchDir, Freeze: target.Freeze(m.Freeze), FreezeBudget: time.Duration(m.FreezeBudget), Agent: m.GuestAgent,
			},
			Each: m.Each,
			Policy: fleet.Policy{
				Schedule: m.Schedule, Jitter: time.Duration(m.Jitter), Objective: time.Duration(m.Objective),
				Hooks: fleet.Hooks{Before: m.Hooks.Before, After: m.Hooks.After, Timeout: time.Duration(m.Hooks.Timeout)},
				Keep:  policyOf(m.Keep),
			},
		}
		if isPattern(m.Libvirt) {
			e.Spec.Domain, e.Domains, e.Except = "", m.Libvirt, m.Except
		}
		list = append(list, e)
	}
	return list
}

func policyOf(k configs.Keep) retention.Policy {
	return retention.Policy{
		Last: int(k.Last), Hourly: int(k.Hourly), Daily: int(k.Daily), Weekly: int(k.Weekly), Monthly: int(k.Monthly), Yearly: int(k.Yearly),
		Within: time.Duration(k.Within),
	}
}

// machines finds the machines of the configuration, and what is wrong with it.
func (p *program) machines(ctx context.Context) ([]fleet.Machine, []*fleet.Problem) {
	return fleet.Expand(ctx, entries(p.configured()))
}
