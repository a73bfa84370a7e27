package configs

// Config is a configuration file. Every field has its key in the tag yaml, and in the tag
// doc the words that the reference and the JSON schema are made of.
type Config struct {
	Repository  string      `yaml:"repository" doc:"where restore points are stored: a folder, s3://BUCKET/PREFIX or s3:http(s)://HOST:PORT/BUCKET/PREFIX"`
	Credentials Credentials `yaml:"credentials" doc:"where the keys of an S3 store are found; they never stand in this file"`
	StateDir    string      `yaml:"state_dir" doc:"where this host remembers its runs"`
	ScratchDir  string      `yaml:"scratch_dir" doc:"where QEMU keeps what a running guest overwrites during its backup"`
	Defaults    Settings    `yaml:"defaults" doc:"what holds for every machine that does not say otherwise"`
	Machines    []Machine   `yaml:"machines" doc:"the machines to back up"`
	Limits      Limits      `yaml:"limits" doc:"what all backups of this host may use together"`
	Prune       Prune       `yaml:"prune" doc:"when data that no restore point needs any more is deleted from the store"`
	Metrics     Metrics     `yaml:"metrics" doc:"how Prometheus gets at the metrics"`
}

// Credentials say where the keys of a store are. One of File and Systemd is set, or none:
// then the environment has them, or the machine's role.
type Credentials struct {
	File    string `yaml:"file" doc:"an AWS shared credentials file, which only its owner and group may read"`
	Profile string `yaml:"profile" doc:"the section of the credentials file to use"`
	Systemd string `yaml:"systemd" doc:"name of a systemd credential (LoadCredential=) with the content of such a file"`
}

// Settings hold for one machine or, as defaults, for all.
type Settings struct {
	Schedule     string   `yaml:"schedule" doc:"when the machine is backed up: a cron expression or @hourly, @daily, @weekly, @monthly; without one it is due at each run"`
	Jitter       Duration `yaml:"jitter" doc:"how much later a scheduled backup may begin, the same time each day, so that not all begin at once"`
	Objective    Duration `yaml:"objective" doc:"how old the newest restore point may get (recovery point objective)"`
	Freeze       Freeze   `yaml:"freeze" doc:"freeze the guest's file systems for the point in time: off, try, or require (no point without)"`
	FreezeBudget Duration `yaml:"freeze_budget" doc:"how long they may be frozen at most"`
	Hooks        Hooks    `yaml:"hooks" doc:"programs to run around a backup"`
	AllowDirs    []string `yaml:"allow_dirs" doc:"folders in which backing and data files of images may lie"`
	Keep         Keep     `yaml:"keep" doc:"which restore points stay, applied after each backup; without it, all"`
}

// Keep says which restore points stay: each line keeps some, and what no line keeps is forgotten.
type Keep struct {
	Last    Count    `yaml:"last" doc:"this many of the newest"`
	Hourly  Count    `yaml:"hourly" doc:"one for each of the newest so many hours that have any"`
	Daily   Count    `yaml:"daily" doc:"one for each of so many days"`
	Weekly  Count    `yaml:"weekly" doc:"one for each of so many weeks"`
	Monthly Count    `yaml:"monthly" doc:"one for each of so many months"`
	Yearly  Count    `yaml:"yearly" doc:"one for each of so many years"`
	Within  Duration `yaml:"within" doc:"all that are at most so much older than the newest"`
}

// Prune says when data is deleted.
type Prune struct {
	Schedule string `yaml:"schedule" doc:"a cron expression or @daily, @weekly, ...; off: never by this host"`
}

// Hooks are programs that are run around a backup, by their paths.
type Hooks struct {
	Before  []string `yaml:"before" doc:"run before the backup; one that fails keeps it from beginning"`
	After   []string `yaml:"after" doc:"run after the backup, however it ended"`
	Timeout Duration `yaml:"timeout" doc:"how long each may take"`
}

// Machine is one machine, or a rule that finds several.
type Machine struct {
	Name       string   `yaml:"name" doc:"the machine's name in the repository"`
	Images     Images   `yaml:"images" doc:"its images: a list, or a mapping from disk names; raw:PATH for a raw one"`
	QMP        string   `yaml:"qmp" doc:"QMP socket of the machine's QEMU"`
	GuestAgent string   `yaml:"guest_agent" doc:"socket of the guest agent"`
	Each       string   `yaml:"each" doc:"a pattern of image files, each of which is a machine named by its stem; raw:PATTERN for raw ones"`
	Libvirt    string   `yaml:"libvirt" doc:"name, UUID or pattern of libvirt domains"`
	LibvirtURI string   `yaml:"libvirt_uri" doc:"which libvirt of this host has them"`
	Except     []string `yaml:"except" doc:"patterns of domains that are not meant"`
	Hold       bool     `yaml:"hold" doc:"keep a machine that is off from starting for the whole run"`
	Settings   `yaml:",inline"`
}

// Limits are what all backups of this host may use together. Zero is no limit, but for Parallel.
type Limits struct {
	Parallel Count     `yaml:"parallel" doc:"machines that are backed up at once, at least 1"`
	Memory   Bytes     `yaml:"memory" doc:"buffers of each backup"`
	Upload   Timetable `yaml:"upload" doc:"bytes a second to the store: a rate, or a list of rates by time of day"`
	Requests Count     `yaml:"requests" doc:"requests a second to the store"`
}

// Metrics say how Prometheus gets at the metrics.
type Metrics struct {
	Listen    string    `yaml:"listen" doc:"address of the service's /metrics: HOST:PORT or unix:PATH; off: none"`
	Textfile  string    `yaml:"textfile" doc:"a file for node_exporter's textfile collector, written after each run"`
	TLS       TLS       `yaml:"tls" doc:"serve over TLS"`
	BasicAuth BasicAuth `yaml:"basic_auth" doc:"ask for a name and a password"`
}

// TLS are a certificate and its key.
type TLS struct {
	Certificate string `yaml:"certificate" doc:"file with the certificate"`
	Key         string `yaml:"key" doc:"file with its key, readable by its owner only"`
}

// BasicAuth is who may read the metrics.
type BasicAuth struct {
	User         string `yaml:"user" doc:"the name"`
	PasswordFile string `yaml:"password_file" doc:"file with the password, readable by its owner only"`
}

// What holds where a file does not say.
const (
	// DefaultPath is read when no other file is named and it exists.
	DefaultPath = "/etc/qbackup/qbackup.yaml"
	// DefaultListen is where the service's metrics are, on this host only.
	DefaultListen = "127.0.0.1:9842"
	// ListenOff is said where no metrics are to be served.
	ListenOff = "off"
	// PruneOff is said where this host is not to delete anything.
	PruneOff = "off"
)

// start is what holds before a file is read.
func start() *Config {
	return &Config{
		Defaults: Settings{Freeze: FreezeTry},
		Limits:   Limits{Parallel: 2},
		Prune:    Prune{Schedule: "@weekly"},
		Metrics:  Metrics{Listen: DefaultListen},
	}
}
