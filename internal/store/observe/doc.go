// Package observe counts what a store does: calls by verb and outcome, bytes both
// ways, and how long answers take.
//
// It leaves to others what is shown of it. It sits next to the driver, below the
// retries, so it counts attempts. The Stats belong to the caller and may be read
// at any time, also by several readers.
//
// Concurrency: everything is safe for parallel use.
package observe
