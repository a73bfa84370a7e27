package live

import (
	"context"
	"slices"
)

// graph is the block nodes of a QEMU and how they hang together.
type graph struct {
	nodes   map[string]nodeInfo
	order   []string
	devices []deviceInfo
	// children gives the nodes below a node, by the role that they have for it:
	// "file", "backing", "target".
	children map[string]map[string]string
	// writers are the nodes that a guest, or an export for one, may write to
	// directly.
	writers []string
}

// filters are nodes that show what is below them.
var filters = []string{"copy-before-write", "backup-top", "throttle", "copy-on-read", "mirror_top", "commit_top", "preallocate", "compress", "blkdebug"}

// look asks QEMU for its graph.
func (s *session) look(ctx context.Context) (*graph, error) {
	g := &graph{nodes: map[string]nodeInfo{}, children: map[string]map[string]string{}}
	list, err := s.nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		g.nodes[n.Name] = n
		g.order = append(g.order, n.Name)
	}
	if s.features.devices {
		if err := s.do(ctx, "query-block", nil, &g.devices); err != nil {
			return nil, err
		}
	}
	if !s.features.graph {
		return g, nil
	}
	var info graphInfo
	if err := s.do(ctx, "x-debug-query-block-graph", nil, &info); err != nil {
		return nil, err
	}
	g.connect(info)
	return g, nil
}

func (g *graph) connect(info graphInfo) {
	names, users := map[int64]string{}, map[int64]bool{}
	for _, n := range info.Nodes {
		switch n.Type {
		case "block-driver":
			names[n.ID] = n.Name
		case "block-backend":
			users[n.ID] = true
		}
	}
	for _, e := range info.Edges {
		child := names[e.Child]
		if users[e.Parent] && slices.Contains(e.Perm, "write") {
			g.writers = append(g.writers, child)
		}
		if parent := names[e.Parent]; parent != "" {
			if g.children[parent] == nil {
				g.children[parent] = map[string]string{}
			}
			g.children[parent][e.Name] = child
		}
	}
}

// roots are the nodes at the top of the machine's disks, with what the machine
// calls them.
func (g *graph) roots() []root {
	var list []root
	add := func(node, label string) {
		known := slices.ContainsFunc(list, func(r root) bool { return r.node == node })
		if node != "" && !known && !ours(node) {
			list = append(list, root{node, label})
		}
	}
	for _, d := range g.devices {
		if d.Inserted == nil || d.Inserted.ReadOnly {
			continue
		}
		label := d.Device
		if label == "" {
			label = d.QDev
		}
		add(g.unfiltered(d.Inserted.Node), label)
	}
	if len(g.devices) > 0 {
		return list
	}
	// qemu-storage-daemon has no devices: there it is who may write.
	for _, node := range g.writers {
		node = g.unfiltered(node)
		add(node, node)
	}
	return list
}

type root struct{ node, label string }

// unfiltered goes down to the node that a filter shows.
func (g *graph) unfiltered(node string) string {
	for range len(g.nodes) {
		n := g.nodes[node]
		if !slices.Contains(filters, n.Driver) {
			return node
		}
		below := g.children[node]["file"]
		if below == "" {
			below = g.children[node]["backing"]
		}
		if below == "" {
			return node
		}
		node = below
	}
	return node
}

// file is the local file or device that holds the data of a node, as QEMU calls it;
// empty when it is elsewhere.
func (g *graph) file(node string) string {
	n := g.nodes[node]
	if below := g.children[node]["file"]; below != "" {
		n = g.nodes[g.unfiltered(below)]
	} else if n.Driver == driverQcow2 || n.Driver == driverRaw {
		// No graph to ask. What is no plain name begins with "json:".
		if len(n.File) >= 5 && n.File[:5] == "json:" {
			return ""
		}
		return n.File
	}
	if n.Driver != "file" && n.Driver != "host_device" {
		return ""
	}
	return n.Image.Filename
}

// chain is a node and the backing files below it.
func (g *graph) chain(node string) []nodeInfo {
	var list []nodeInfo
	for node != "" && len(list) <= len(g.nodes) {
		node = g.unfiltered(node)
		list = append(list, g.nodes[node])
		node = g.children[node]["backing"]
	}
	return list
}

// Drivers of nodes that are told apart.
const (
	driverQcow2 = "qcow2"
	driverRaw   = "raw"
)
