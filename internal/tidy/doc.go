// Package tidy holds the rules of the house as tests: which room may import which, how long a file and a function may
// be, what a package must say of itself. A rule that matters is enforced here, with its reason, instead of remembered.
//
// It has no code of its own, imports nothing of ours, and leaves style that gofmt, go vet and staticcheck see to them.
package tidy
