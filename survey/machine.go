package survey

import (
	"context"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/remote"
)

// ReadHost surveys the machine alone, for a cluster that cannot be asked.
func ReadHost(ctx context.Context, h *remote.Host, in *k3s.Installation) (Host, error) {
	return readHost(ctx, h, in)
}
