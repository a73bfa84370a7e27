// Package retention decides which points of a machine stay, by a policy, and says for each of them why.
//
// It is pure: points and the time come in, decisions go out. Left to others: where points come from and what
// becomes of those that go (prune).
package retention
