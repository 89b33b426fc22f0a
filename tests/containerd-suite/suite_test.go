// Package suite runs containerd's own suite for snapshotters against `larder snapshotter`, through containerd's own
// client. Run it with scripts/containerd-suite.sh.
package suite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

// start runs a snapshotter on root, with its socket and an empty state directory next to it.
func start(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	parent := filepath.Dir(root)
	socket := filepath.Join(parent, "socket")
	larder := exec.Command(os.Getenv("LARDER"), "snapshotter", "--socket", socket, "--root", root)
	larder.Env = append(os.Environ(), "LARDER_STATE__DIR="+filepath.Join(parent, "state"))
	larder.Stderr = os.Stderr
	if err := larder.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() error {
		_ = larder.Process.Kill()
		_ = larder.Wait()
		return nil
	}
	// The socket exists as soon as it accepts connections.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			_ = stop()
			return nil, nil, fmt.Errorf("no socket at %s", socket)
		}
	}
	// The gRPC version of Debian 12 has no newer option for a connection without TLS.
	connection, err := grpc.Dial(dialer.DialAddress(socket), grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		_ = stop()
		return nil, nil, err
	}
	return proxy.NewSnapshotter(api.NewSnapshotsClient(connection), "larder"), stop, nil
}

func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, "larder", start)
}
