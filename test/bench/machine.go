package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine tells what the figures were made on; they mean little elsewhere.
type machine struct {
	CPU        string  `json:"cpu"`
	Cores      int     `json:"cores"`
	MemoryGiB  float64 `json:"memory_gib"`
	Kernel     string  `json:"kernel"`
	FileSystem string  `json:"file_system"`
	SyncMicros float64 `json:"fdatasync_micros"` // median of a 4 KiB append
	Go         string  `json:"go"`
	Commit     string  `json:"commit"`
	Etcd       string  `json:"etcd"`
	Command    string  `json:"command"`
	Time       string  `json:"time"`
}

func describe(root, dir string, etcd product) (machine, error) {
	m := machine{
		CPU:     procField("/proc/cpuinfo", "model name"),
		Cores:   runtime.NumCPU(),
		Go:      runtime.Version(),
		Commit:  commit(root),
		Command: strings.Join(append([]string{"go run ./test/bench"}, os.Args[1:]...), " "),
		Time:    time.Now().UTC().Format(time.DateTime) + " UTC",
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("memory: %w", err)
	}
	m.MemoryGiB = float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("kernel: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	m.FileSystem = fileSystem(dir)
	var err error
	if m.SyncMicros, err = syncMicros(dir); err != nil {
		return m, fmt.Errorf("fdatasync: %w", err)
	}
	version, err := exec.Command(etcd.binary, "--version").Output()
	if err != nil {
		return m, fmt.Errorf("version of %s: %w", etcd.binary, err)
	}
	m.Etcd, _, _ = strings.Cut(string(version), "\n")
	return m, nil
}

func (m machine) String() string {
	return fmt.Sprintf("%s\n%s, %d cores, %.0f GiB, %s, data on %s (4 KiB append and fdatasync: %.0f µs)\n%s, commit %s, against %s\n%s",
		m.Command, m.CPU, m.Cores, m.MemoryGiB, m.Kernel, m.FileSystem, m.SyncMicros, m.Go, m.Commit, m.Etcd, m.Time)
}

// procField is the first value of a "name : value" file in /proc.
func procField(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown CPU"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

// commit is the short hash of what is checked out, marked when files differ.
func commit(root string) string {
	out, err := exec.Command("git", "-C", root, "describe", "--always", "--dirty", "--exclude", "*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// fileSystem is the kind of the mount that holds dir.
func fileSystem(dir string) string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "unknown"
	}
	kind, longest := "unknown", -1
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < longest {
			continue
		}
		if rest, ok := strings.CutPrefix(dir, f[1]); ok && (rest == "" || f[1] == "/" || rest[0] == '/') {
			kind, longest = f[2], len(f[1])
		}
	}
	return kind
}

// syncMicros measures what one durable write costs here at the least.
func syncMicros(dir string) (float64, error) {
	file, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	page := make([]byte, 4096)
	// Into space that is there already, as both logs write.
	if err := syscall.Fallocate(int(file.Fd()), 0, 0, 1<<20); err != nil {
		return 0, err
	}
	var took []float64
	for range 200 {
		began := time.Now()
		if _, err := file.Write(page); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(file.Fd())); err != nil {
			return 0, err
		}
		took = append(took, micros(time.Since(began)))
	}
	return median(took), nil
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
