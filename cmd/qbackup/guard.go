package main

import (
	"context"

	"github.com/spf13/cobra"
)

// guardCommand is the program as its own guard; see package guard.
func (p *program) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: "guard", Hidden: true, Annotations: map[string]string{unconfigured: "a guard must do its work whatever else is wrong"}, Args: arguments(cobra.NoArgs),
		Short: "Undo what a backup leaves in a machine when it dies (started by backups)",
		RunE:  func(c *cobra.Command, _ []string) error { return p.host().ServeGuard(c.Context(), p.stdin, p.stdout) },
	}
}

// thawCommand undoes what nobody is left to undo.
func (p *program) thawCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "thaw",
		Annotations: map[string]string{unconfigured: "a machine must be thawed whatever else is wrong"},
		Short:       "Thaw or resume machines that a killed backup left frozen or suspended",
		Long: `Thaw or resume machines that a backup left frozen or suspended, and take down what it left in their QEMU. A backup that dies is
followed by a guard process that does so within moments; this is for the death of both. Every backup does it, too, when it starts.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := p.applyConfig(); err != nil {
				p.warn("the configuration is not read: %v", err)
			}
			return p.thaw(c.Context(), true)
		},
	}
}

// thaw undoes what dead guards have left, and says so.
func (p *program) thaw(ctx context.Context, asked bool) error {
	undone, err := p.host().Thaw(ctx)
	for _, line := range undone {
		p.warn("%s", line)
	}
	if asked && len(undone) == 0 && err == nil {
		p.say("nothing is frozen or suspended, or left in a machine")
	}
	return err
}
