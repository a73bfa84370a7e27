package live

import (
	"encoding/json"
	"slices"
	"testing"
)

// testGraph makes a graph from nodes and edges, written as "parent role child".
func testGraph(t *testing.T, nodes map[string]string, edges [][3]string, writers ...string) *graph {
	t.Helper()
	g := &graph{nodes: map[string]nodeInfo{}, children: map[string]map[string]string{}}
	var info graphInfo
	raw := map[string]any{}
	ids := map[string]int{}
	var list, lines []map[string]any
	for name, driver := range nodes {
		g.nodes[name] = nodeInfo{Name: name, Driver: driver, Image: imageInfo{Filename: "/vm/" + name}, File: "/vm/" + name}
		ids[name] = len(ids) + 1
		list = append(list, map[string]any{"id": ids[name], "type": "block-driver", "name": name})
	}
	for _, e := range edges {
		lines = append(lines, map[string]any{"parent": ids[e[0]], "name": e[1], "child": ids[e[2]], "perm": []string{"write"}})
	}
	for i, w := range append(writers, "qb1-scratch-0") {
		list = append(list, map[string]any{"id": 100 + i, "type": "block-backend", "name": ""})
		perm := []string{"consistent-read", "write"}
		if i == len(writers) {
			perm = perm[:1]
		}
		lines = append(lines, map[string]any{"parent": 100 + i, "name": "root", "child": ids[w], "perm": perm})
	}
	raw["nodes"], raw["edges"] = list, lines
	text, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &info); err != nil {
		t.Fatal(err)
	}
	g.connect(info)
	return g
}

func names(roots []root) (list []string) {
	for _, r := range roots {
		list = append(list, r.node)
	}
	return list
}

func TestDisksAreFoundBelowFilters(t *testing.T) {
	g := testGraph(t, map[string]string{
		"#block1": "copy-before-write", "slow": "throttle", "d0": "qcow2", "f0": "file", "base": "qcow2", "fb": "file",
		"qb1-scratch-0": "qcow2", "r1": "raw", "h1": "host_device", "n2": "raw", "remote": "nbd", "bare": "file",
	}, [][3]string{
		{"#block1", "file", "slow"}, {"slow", "file", "d0"}, {"d0", "file", "f0"}, {"d0", "backing", "base"}, {"base", "file", "fb"},
		{"qb1-scratch-0", "backing", "d0"}, {"r1", "file", "h1"}, {"n2", "file", "remote"},
	}, "#block1", "r1", "n2", "bare")
	if got := names(g.roots()); !slices.Equal(got, []string{"d0", "r1", "n2", "bare"}) {
		t.Errorf("disks %v", got)
	}
	for node, want := range map[string]string{"d0": "/vm/f0", "base": "/vm/fb", "r1": "/vm/h1", "n2": "", "bare": "/vm/bare"} {
		if got := g.file(node); got != want {
			t.Errorf("the file of %s is %q, want %q", node, got, want)
		}
	}
	chain := g.chain("d0")
	if len(chain) != 2 || chain[1].Name != "base" {
		t.Errorf("chain %v", chain)
	}
}

func TestDevicesSayWhatTheDisksAre(t *testing.T) {
	g := testGraph(t, map[string]string{"d0": "qcow2", "f0": "file", "cd": "raw", "fc": "file", "other": "qcow2", "qb1-scratch-0": "qcow2"},
		[][3]string{{"d0", "file", "f0"}, {"cd", "file", "fc"}}, "d0", "other")
	if err := json.Unmarshal([]byte(`[
		{"device": "", "qdev": "/machine/peripheral/vda/virtio-backend", "inserted": {"node-name": "d0", "ro": false}},
		{"device": "cd0", "inserted": {"node-name": "cd", "ro": true}},
		{"device": "floppy0"},
		{"device": "again", "inserted": {"node-name": "d0", "ro": false}}]`), &g.devices); err != nil {
		t.Fatal(err)
	}
	if got := g.roots(); len(got) != 1 || got[0].node != "d0" || got[0].label != "/machine/peripheral/vda/virtio-backend" {
		t.Errorf("disks %v", got)
	}
	if got := printable("/machine/peripheral/vda/virtio-backend"); got != "machine-peripheral-vda-virtio-backend" {
		t.Errorf("called %s", got)
	}
}

func TestAGraphThatGoesRoundInCirclesEnds(t *testing.T) {
	g := testGraph(t, map[string]string{"a": "throttle", "b": "throttle", "c": "qcow2", "d": "qcow2", "qb1-scratch-0": "qcow2"},
		[][3]string{{"a", "file", "b"}, {"b", "file", "a"}, {"c", "backing", "d"}, {"d", "backing", "c"}}, "a", "c")
	if got := len(g.roots()); got != 2 {
		t.Errorf("%d disks", got)
	}
	if got := len(g.chain("c")); got > len(g.nodes)+1 {
		t.Errorf("a chain of %d", got)
	}
}

func TestWithoutAGraphTheNodeSaysWhereItsFileIs(t *testing.T) {
	g := &graph{nodes: map[string]nodeInfo{"d0": {Name: "d0", Driver: "qcow2", File: "/vm/a.qcow2"}, "d1": {Name: "d1", Driver: "qcow2", File: `json:{"driver":"qcow2"}`}}}
	if g.file("d0") != "/vm/a.qcow2" || g.file("d1") != "" {
		t.Errorf("%q, %q", g.file("d0"), g.file("d1"))
	}
}
