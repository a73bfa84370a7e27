package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/qbackup/qbackup/"

// floors lists every package and the floor it stands on. A package imports only from lower floors: so one can read the
// house from the ground up, and a change can only break what is above it. A parent may import its own children
// (repo its format), since they are one room.
var floors = map[string]int{
	"internal/cache": -2, "internal/extent": -2, "internal/ident": -2, "internal/iszero": -2,
	"configs": -2, "internal/schedule": -2,

	"internal/qcow2": 0, "internal/nbd": 0, "internal/qmp": 0, "internal/store": 0,
	"internal/store/dir": 0, "internal/store/s3": 0, "internal/store/mem": 0, "internal/store/retry": 0,
	"internal/store/limit": 0, "internal/store/observe": 0, "internal/store/fault": 0, "internal/store/probe": 0,
	"internal/store/location": 0,

	"internal/repo/format": 0, // bytes and values: source keeps its facts in them

	"bitmapscan": 1, "internal/repo": 1, "internal/repo/blockmap": 1,
	"internal/retention": 1, "internal/source": 1, "internal/state": 1, "internal/guard": 1,

	"upload": 2, "internal/restore": 2, "internal/prune": 2, "internal/verify": 2, "internal/source/offline": 2, "internal/source/virt": 2,
	"internal/source/facts": 2, "internal/source/scratch": 2, "internal/source/exported": 2, "internal/source/live": 2,

	"agent": 3, "internal/target": 3,

	"internal/fleet": 4, "internal/service": 4, "metrics": 4,

	"cmd/qbackup": 5,

	// Rooms of the tests; the demo uses guest.
	"internal/guest": 4, "internal/sim": 4, "internal/testtool": 4, "internal/tidy": 4, "internal/store/storetest": 4, "internal/repo/repotest": 4,
	"internal/linuxguest": 4,
	"internal/e2e":        6, "internal/systest": 6, "internal/crashtest": 6, "internal/livetest": 6,
}

// forTests are the rooms that production code may not enter; cmd/qbackup's demo plays a guest.
var forTests = map[string]bool{
	"internal/guest": true, "internal/linuxguest": true, "internal/sim": true, "internal/testtool": true, "internal/store/storetest": true, "internal/repo/repotest": true, "internal/store/fault": true, "internal/store/mem": true,
}

type source struct {
	path, pkg string
	test      bool
	file      *ast.File
	lines     int
}

func sources(t *testing.T) (*token.FileSet, []source) {
	t.Helper()
	root := "../.."
	out, err := exec.Command("git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", "*.go").Output()
	if err != nil {
		t.Fatalf("list the tree's files: %v", err)
	}
	fset := token.NewFileSet()
	var list []source
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // removed, not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, source{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), f, strings.Count(string(text), "\n")})
	}
	return fset, list
}

func TestImportsPointDownOnly(t *testing.T) {
	_, list := sources(t)
	for _, s := range list {
		own, known := floors[s.pkg]
		if !known {
			t.Errorf("%s: package %s stands on no floor; add it to floors", s.path, s.pkg)
			continue
		}
		if s.test {
			continue
		}
		for _, spec := range s.file.Imports {
			target, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module)
			if !ours {
				continue
			}
			oneRoom := strings.HasPrefix(target, s.pkg+"/") || path.Dir(target) == path.Dir(s.pkg) && path.Dir(target) != "internal" && path.Dir(target) != "." || path.Dir(s.pkg) == target
			floor := floors[target]
			if forTests[target] {
				if s.pkg == "cmd/qbackup" && target == "internal/guest" || floors[s.pkg] == 4 || s.pkg == "internal/e2e" {
					continue
				}
				t.Errorf("%s imports %s, which is for tests", s.path, target)
				continue
			}
			if floor >= own && !oneRoom {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports point down", s.path, own, target, floor)
			}
		}
	}
}

func TestFilesHoldOneThought(t *testing.T) {
	_, list := sources(t)
	for _, s := range list {
		if limit := 600; s.lines > limit {
			t.Errorf("%s has %d lines, more than %d: split it by noun", s.path, s.lines, limit)
		}
	}
}

func TestFunctionsFitAScreen(t *testing.T) {
	fset, list := sources(t)
	for _, s := range list {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; n > 80 {
				t.Errorf("%s: func %s has %d lines, more than 80", s.path, f.Name.Name, n)
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: func init: what happens at start is said in main", s.path)
			}
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	_, list := sources(t)
	comment, wanted := map[string]bool{}, map[string]bool{}
	for _, s := range list {
		if s.test {
			continue
		}
		wanted[s.pkg] = true
		if s.file.Doc != nil {
			comment[s.pkg] = true
		}
	}
	for pkg := range wanted {
		if !comment[pkg] {
			t.Errorf("package %s has no package comment", pkg)
		}
		switch path.Base(pkg) {
		case "util", "utils", "common", "helpers", "misc":
			t.Errorf("package %s: the name says nothing", pkg)
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	_, list := sources(t)
	for _, s := range list {
		if s.test || s.pkg == "cmd/qbackup" {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !wellKnown[d.Name.Name] {
					t.Errorf("%s: func %s has no comment", s.path, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil && ts.Comment == nil {
						t.Errorf("%s: type %s has no comment", s.path, ts.Name.Name)
					}
				}
			}
		}
	}
}

// wellKnown are methods of the standard library's interfaces: their contract is written there.
var wellKnown = map[string]bool{
	"String": true, "Error": true, "Unwrap": true, "Is": true, "Read": true, "ReadAt": true, "WriteAt": true, "Write": true, "Close": true,
	"MarshalText": true, "UnmarshalText": true, "MarshalJSON": true, "UnmarshalJSON": true, "Size": true, "Seek": true,
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	name, ok := typ.(*ast.Ident)
	return ok && name.IsExported()
}

func TestNothingIsLeftForLater(t *testing.T) {
	marks := regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)
	_, list := sources(t)
	for _, s := range list {
		if s.pkg == "internal/tidy" {
			continue
		}
		for _, group := range s.file.Comments {
			if m := marks.FindString(group.Text()); m != "" {
				t.Errorf("%s: a comment says %s: do it, or write down in docs why not", s.path, m)
			}
		}
	}
}

func TestDocumentsNameNoLineNumbersAndExistingFiles(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files", "*.md").Output()
	if err != nil {
		t.Fatal(err)
	}
	lineNumber := regexp.MustCompile(`\.go:\d+`)
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			continue
		}
		if m := lineNumber.Find(text); m != nil {
			t.Errorf("%s: %s: line numbers go stale", name, m)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			to := string(m[1])
			if strings.Contains(to, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join("../..", path.Dir(name), to)); err != nil {
				t.Errorf("%s: link to %s, which is not there", name, to)
			}
		}
	}
}
