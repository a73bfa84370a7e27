// Package fault makes a store misbehave by plan, so that tests can prove what the
// rest of the house does when a server, a network or a disk fails.
//
// It leaves to others what to do about it. A plan is a list of Rules: which calls
// (verb, key prefix, the how-manieth, or by chance from a fixed seed) meet which
// fault. Without a rule that matches, a call passes through unchanged.
//
// Concurrency: a Store is safe for parallel use; calls are counted in the order in
// which they arrive. It serves the proofs of I1, I2, I4 and I7.
package fault
