package listen

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// holder names the process that listens on a TCP port, as " by pid 7 (etcd)".
// It returns "" where /proc does not tell: on other systems, or when the
// process is another user's.
func holder(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ""
	}
	inodes := listening(uint16(number))
	if len(inodes) == 0 {
		return ""
	}
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, descriptor := range descriptors {
		link, err := os.Readlink(descriptor)
		if err != nil || !slices.Contains(inodes, link) {
			continue
		}
		process := filepath.Dir(filepath.Dir(descriptor))
		command, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf(" by pid %s (%s)", filepath.Base(process), strings.TrimSpace(string(command)))
	}
	return ""
}

// listening returns the sockets that listen on port, as descriptors link to
// them: "socket:[12345]".
func listening(port uint16) []string {
	const stateListen = "0A"
	var all []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			// sl local_address rem_address st queues timers retransmits uid timeout inode
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == stateListen && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				all = append(all, "socket:["+f[9]+"]")
			}
		}
	}
	return all
}
