// Package metrics shows Prometheus what this host knows of its backups: over HTTP while
// the service runs, and as a file for node_exporter's textfile collector after each run.
//
// It leaves to others: to count. What it shows is read at each scrape from what is
// remembered on this host and from the counters of backups that run; the repository's
// store is not asked.
//
// A Collector may be scraped by several at once.
package metrics
