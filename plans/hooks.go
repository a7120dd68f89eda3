package plans

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Step names a step of the migration.
type Step string

// Steps are the steps in their order. They are named here for the plan's hooks; package
// steps says what each does.
var Steps = []Step{
	"survey", "preflight", "snapshot", "protect", "gate", "quiesce", "freeze", "seal", "network", "uninstall", "install",
	"volumes", "start", "secrets", "claims", "platform", "services", "verify", "finish",
}

// Hook is a command that runs before or after a step, as a part of it: it is an action of the step in the plan, in the journal and in the report, and the step fails with it.
//
// It must be repeatable: it runs again after a failure, and may do so after an interruption. Hooks of survey and preflight run whenever a run that has
// not gone beyond them looks anew, before it holds the host's lock. A rollback runs no hook.
type Hook struct {
	// Name of the hook, an RFC 1123 label of at most 32 characters. No other hook has it.
	Name string `json:"name" jsonschema:"maxLength=32,pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"`
	// Step at whose beginning the hook runs: when its question, where it has one, was agreed to, and before it does anything.
	Before Step `json:"before,omitempty" jsonschema:"oneof_required=before"`
	// Step at whose end the hook runs, when all else of it is done.
	After Step `json:"after,omitempty" jsonschema:"oneof_required=after"`
	// Where the command runs. "laptop": as spec.platform.command does, in its directory and with its environment; KUBECONFIG leads to the cluster, and to none while its API is down, from quiesce to start. "host": as root, apart from the connection, so that it goes on when that is lost. Default "laptop".
	On Place `json:"on,omitempty" jsonschema:"enum=laptop,enum=host,default=laptop"`
	// Program and arguments; no shell is involved. What it prints is shown, and is not kept.
	Command []string `json:"command" jsonschema:"minItems=1"`
	// How long the command may take. Default 10m.
	Timeout Duration `json:"timeout,omitzero" jsonschema:"default=10m"`
}

// Place is where a hook's command runs.
type Place string

// The places.
const (
	// OnLaptop is the machine that migrate runs on.
	OnLaptop Place = "laptop"
	// OnHost is the cluster's host.
	OnHost Place = "host"
)

// maxHookName leaves room for the step in the name of a hook's job on the host.
const maxHookName = 32

func validateHooks(path *field.Path, hooks []Hook) field.ErrorList {
	var errs field.ErrorList
	for i, h := range hooks {
		at := path.Index(i)
		switch name := at.Child("name"); {
		case h.Name == "":
			errs = append(errs, field.Required(name, "give the hook a name, such as drain-mail: journal and report call it so"))
		case len(h.Name) > maxHookName:
			errs = append(errs, field.TooLong(name, h.Name, maxHookName))
		case slices.ContainsFunc(hooks[:i], func(other Hook) bool { return other.Name == h.Name }):
			errs = append(errs, field.Duplicate(name, h.Name))
		default:
			errs = append(errs, invalid(name, h.Name, validation.IsDNS1123Label(h.Name))...)
		}
		switch {
		case h.Before == "" && h.After == "":
			errs = append(errs, field.Required(at, "say when it runs: before or after which step"))
		case h.Before != "" && h.After != "":
			errs = append(errs, field.Forbidden(at.Child("after"), "the hook has a before already; write two hooks to run at both"))
		}
		if h.Before != "" && !slices.Contains(Steps, h.Before) {
			errs = append(errs, field.NotSupported(at.Child("before"), h.Before, Steps))
		}
		if h.After != "" && !slices.Contains(Steps, h.After) {
			errs = append(errs, field.NotSupported(at.Child("after"), h.After, Steps))
		}
		if choices := []Place{OnLaptop, OnHost}; !slices.Contains(choices, h.On) {
			errs = append(errs, field.NotSupported(at.Child("on"), h.On, choices))
		}
		command := at.Child("command")
		switch {
		case len(h.Command) == 0:
			errs = append(errs, field.Required(command, "name the program and its arguments, such as [systemctl, stop, postfix]"))
		case h.On == OnHost && strings.HasPrefix(h.Command[0], "~"):
			errs = append(errs, field.Invalid(command.Index(0), h.Command[0], "no shell is involved that would know the home directory; write the path out"))
		}
		errs = append(errs, validateCommand(command, h.Command)...)
		errs = append(errs, validateTimeout(at.Child("timeout"), h.Timeout)...)
	}
	return errs
}

// checkHooks looks for the programs that run on the laptop.
func checkHooks(path *field.Path, hooks []Hook, directory string) field.ErrorList {
	var errs field.ErrorList
	for i, h := range hooks {
		if h.On == OnLaptop {
			errs = append(errs, checkProgram(path.Index(i).Child("command"), h.Command, directory, fmt.Sprintf("missing command of hook %s: ", h.Name))...)
		}
	}
	return errs
}
