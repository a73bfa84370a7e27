// Package configs is the configuration of qbackup and the files that are shipped with it.
//
// Parse is strict: a key that is not known, a value of the wrong kind and a secret that
// stands in the file are errors with line and column, all of them at once. An error never
// repeats a value, since a value may be a secret, and never a line of the file.
//
// It leaves to others: to open, ask or run anything that a configuration names. What it
// cannot know (which names a machine may have, what a schedule may be) its caller checks;
// see Checks.
package configs
