package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/configs"
)

func (p *program) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use:         "config",
		Short:       "Check and show the configuration",
		Long:        "The configuration is read from --config, $QBACKUP_CONFIG, or " + configs.DefaultPath + " where it exists.",
		Annotations: map[string]string{unconfigured: "it is what these commands are about"},
		Args:        arguments(cobra.NoArgs),
		RunE:        func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		&cobra.Command{
			Use: "check", Short: "Say what is wrong with the configuration, with line and column",
			Long: "Say everything that is wrong with the configuration, with line, column and cure. What patterns of images and domains find now is counted, and what they do not find is a remark.",
			Args: arguments(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return p.checkConfig(c.Context()) },
		},
		&cobra.Command{
			Use: "show", Short: "Show what the configuration comes to, with the defaults in every machine",
			Args: arguments(cobra.NoArgs), RunE: func(*cobra.Command, []string) error { return p.showConfig() },
		},
		&cobra.Command{
			Use: "schema", Short: "Print the JSON schema of the configuration, for editors",
			Args: arguments(cobra.NoArgs), RunE: func(*cobra.Command, []string) error { return p.showSchema() },
		},
		&cobra.Command{
			Use: "sample", Short: "Print a configuration with every key and a word about each",
			Args: arguments(cobra.NoArgs), RunE: func(*cobra.Command, []string) error {
				_, err := p.stdout.Write(configs.Sample)
				return err
			},
		},
	)
	return c
}

// checkedConfig is what config check --json says.
type checkedConfig struct {
	MessageType string `json:"message_type"` // "config"
	File        string `json:"file"`
	Entries     int    `json:"entries"`  // of machines
	Machines    int    `json:"machines"` // that these come to now
}

func (p *program) checkConfig(ctx context.Context) error {
	path, _ := p.configPath()
	c, err := configs.Load(path, configChecks())
	if err != nil {
		return err
	}
	p.config.Store(c)
	if _, err := p.getenv(); err != nil && c.Credentials.Systemd == "" {
		return err
	}
	for _, file := range []string{c.Metrics.BasicAuth.PasswordFile, c.Metrics.TLS.Key} {
		if file == "" {
			continue
		}
		if err := configs.CheckSecret(file); err != nil {
			return err
		}
	}
	machines, problems := p.machines(ctx)
	for _, problem := range problems {
		p.note("%v", problem)
	}
	if p.json {
		return p.printJSON(checkedConfig{"config", path, len(c.Machines), len(machines)})
	}
	p.say("%s: no fault; entries of machines: %d, machines now: %d", path, len(c.Machines), len(machines))
	return nil
}

func (p *program) showConfig() error {
	c, err := p.loadConfig()
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(c.Plain())
	}
	text, err := c.YAML()
	if err != nil {
		return err
	}
	_, err = p.stdout.Write(text)
	return err
}

func (p *program) showSchema() error {
	text, err := configs.Schema()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "%s\n", text)
	return err
}

// isPattern tells whether a word may match several names.
func isPattern(word string) bool { return strings.ContainsAny(word, `*?[\`) }
