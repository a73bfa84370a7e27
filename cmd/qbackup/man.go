package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/qbackup/qbackup/configs"
)

// manCommand writes the manual pages, for packages.
func (p *program) manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man FOLDER", Hidden: true, Args: arguments(cobra.ExactArgs(1)),
		Annotations: map[string]string{unconfigured: "it needs none"},
		Short:       "Write the manual pages into a folder",
		Long:        "Write the manual page of every command, and that of the configuration, into a folder. Their date is $SOURCE_DATE_EPOCH, or now.",
		RunE:        func(c *cobra.Command, args []string) error { return p.man(c.Root(), args[0]) },
	}
}

func (p *program) man(root *cobra.Command, folder string) error {
	date := time.Now()
	if text := os.Getenv("SOURCE_DATE_EPOCH"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return usagef("SOURCE_DATE_EPOCH is no number of seconds")
		}
		date = time.Unix(seconds, 0).UTC()
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Source: "qbackup", Manual: "qbackup manual", Date: &date}
	if err := doc.GenManTree(root, header, folder); err != nil {
		return fmt.Errorf("write manual pages: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "qbackup.yaml.5"), configPage(date), 0o644); err != nil {
		return fmt.Errorf("write manual pages: %w", err)
	}
	return nil
}

// configPage is the manual page of the configuration.
func configPage(date time.Time) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%% \"QBACKUP.YAML\" \"5\" %q \"qbackup\" \"qbackup manual\"\n", date.Format("Jan 2006"))
	b.WriteString(`# NAME
qbackup.yaml - configuration of qbackup

# SYNOPSIS
**` + configs.DefaultPath + `**, **--config** *FILE*, or **$QBACKUP_CONFIG**

# DESCRIPTION
The file is YAML. A flag goes before the environment, and the environment before the file. It is read strictly: a key that is not known, a value of the wrong kind, and a
secret that stands in it are errors. **qbackup config check** says what is wrong with it, **qbackup config show** what it comes to, and **qbackup config sample** prints one with every key.

# KEYS
`)
	for _, k := range configs.Reference() {
		fmt.Fprintf(&b, "**%s**\n: %s", strings.ReplaceAll(k.Path, "*", `\*`), k.Doc)
		if k.Value != "" {
			fmt.Fprintf(&b, " (%s)", k.Value)
		}
		b.WriteString("\n\n")
	}
	b.WriteString("# SEE ALSO\n**qbackup(1)**, **qbackup-config(1)**\n")
	return md2man.Render([]byte(b.String()))
}
