// Package location turns what an operator writes (a path, file:..., s3:...) into a
// store: it parses the address, and stacks the driver, the counters, the limits
// and the retries in that order.
//
// It leaves to the drivers what their options mean, and to package repo whether
// there is a repository. An address never holds a secret, so it may be printed.
//
// Concurrency: values are immutable; an opened Store is safe for parallel use.
package location
