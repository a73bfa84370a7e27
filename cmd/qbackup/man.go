package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the manual pages, for packages.
func (p *program) manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man FOLDER", Hidden: true, Args: arguments(cobra.ExactArgs(1)),
		Annotations: map[string]string{unconfigured: "it needs none"},
		Short:       "Write the manual page of every command into a folder",
		Long:        "Write the manual page of every command into a folder. Their date is $SOURCE_DATE_EPOCH, or now.",
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
	return nil
}
