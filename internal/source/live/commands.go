package live

import (
	"context"
)

// What QEMU's commands take and give, as far as it is used here. The source is
// QEMU's QAPI schema: qapi/block-core.json, block-export.json, job.json.

// args are the arguments of a command.
type args map[string]any

// nodeInfo is one entry of query-named-block-nodes.
type nodeInfo struct {
	Name      string       `json:"node-name"`
	Driver    string       `json:"drv"`
	ReadOnly  bool         `json:"ro"`
	Encrypted bool         `json:"encrypted"`
	File      string       `json:"file"`
	Image     imageInfo    `json:"image"`
	Bitmaps   []bitmapInfo `json:"dirty-bitmaps"`
}

type imageInfo struct {
	Filename  string `json:"filename"`
	SizeBytes int64  `json:"virtual-size"`
	Cluster   int64  `json:"cluster-size"`
	Specific  struct {
		Type string `json:"type"`
		Data struct {
			Compat string `json:"compat"`
		} `json:"data"`
	} `json:"format-specific"`
}

type bitmapInfo struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
	Granularity  int64  `json:"granularity"`
	DirtyBytes   int64  `json:"count"`
}

// deviceInfo is one entry of query-block.
type deviceInfo struct {
	Device   string `json:"device"`
	QDev     string `json:"qdev"`
	Inserted *struct {
		Node     string `json:"node-name"`
		ReadOnly bool   `json:"ro"`
	} `json:"inserted"`
}

// graphInfo is x-debug-query-block-graph.
type graphInfo struct {
	Nodes []struct {
		ID   int64  `json:"id"`
		Type string `json:"type"`
		Name string `json:"name"`
	} `json:"nodes"`
	Edges []struct {
		Parent int64    `json:"parent"`
		Child  int64    `json:"child"`
		Name   string   `json:"name"`
		Perm   []string `json:"perm"`
	} `json:"edges"`
}

type jobInfo struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Status string `json:"status"`
	Error  string `json:"error"`
}

// Job statuses that matter here; see JobStatus in qapi/job.json.
const (
	jobConcluded = "concluded"
	jobNull      = "null"
	jobAborting  = "aborting"
)

type exportInfo struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Node   string `json:"node-name"`
	Ending bool   `json:"shutting-down"`
}

// nodes lists all block nodes, backing files among them.
func (s *session) nodes(ctx context.Context) ([]nodeInfo, error) {
	var list []nodeInfo
	var a any
	if s.features.flat {
		a = args{"flat": true} // without repeating each chain at each node of it
	}
	return list, s.do(ctx, "query-named-block-nodes", a, &list)
}

func (s *session) jobs(ctx context.Context) ([]jobInfo, error) {
	var list []jobInfo
	return list, s.do(ctx, "query-jobs", nil, &list)
}

// exports lists the NBD exports. A QEMU before 5.2 cannot tell; there they end with
// the server.
func (s *session) exports(ctx context.Context) ([]exportInfo, error) {
	var list []exportInfo
	if !s.features.blockExports {
		return nil, nil
	}
	return list, s.do(ctx, "query-block-exports", nil, &list)
}

// action is one of a transaction.
type action struct {
	Type string `json:"type"`
	Data args   `json:"data"`
}

func (s *session) transaction(ctx context.Context, actions []action) error {
	if len(actions) == 0 {
		return nil
	}
	return s.do(ctx, "transaction", args{"actions": actions}, nil)
}

func addBitmap(node, name string) action {
	return action{"block-dirty-bitmap-add", args{"node": node, "name": name, "persistent": true, "granularity": newGranularityBytes}}
}

func addFrozen(node string, granularity int64) action {
	return action{"block-dirty-bitmap-add", args{"node": node, "name": frozenName, "disabled": true, "granularity": granularity}}
}

func mergeBitmaps(node, target, from string, names []string) action {
	var sources []args
	for _, name := range names {
		sources = append(sources, args{"node": from, "name": name})
	}
	return action{"block-dirty-bitmap-merge", args{"node": node, "target": target, "bitmaps": sources}}
}

func backup(node, target, job string) action {
	return action{"blockdev-backup", args{"device": node, "target": target, "sync": "none", "job-id": job, "auto-dismiss": false}}
}

// removeBitmaps takes bitmaps away, where QEMU can do so all at once or none.
func (s *session) removeBitmaps(ctx context.Context, node string, names []string) error {
	var actions []action
	for _, name := range names {
		a := action{"block-dirty-bitmap-remove", args{"node": node, "name": name}}
		if s.features.removeInTransaction {
			actions = append(actions, a)
		} else if err := s.do(ctx, a.Type, a.Data, nil); err != nil {
			return err
		}
	}
	return s.transaction(ctx, actions)
}
