//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Whole Trellis clusters on this machine, and faults in them.
#[derive(Parser, Debug)]
#[command(name = "trellis-lab", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Args {
    /// Which lab (when not given: "lab", or the name in the topology file)
    #[arg(long, short = 'n', global = true, env = "TRELLIS_LAB")]
    pub name: Option<String>,
    /// The VMs of the Vagrantfile instead of namespaces: status, kill, start, pause, resume, wipe,
    /// partition, heal, exec, daemon, demo
    #[arg(long, global = true)]
    pub vagrant: bool,
    /// Where the Vagrantfile is
    #[arg(long, global = true, value_name = "DIR", default_value = ".", hide_default_value = true)]
    pub vagrant_dir: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  trellis-lab up                              three control planes, two workers
  trellis-lab up -n big -f topology.toml      what a file says
  trellis-lab demo                            a web application survives a power cut
  trellis-lab kill n4                         power cut: no packet, no process after it
  trellis-lab partition n1,n2 / n3,n4,n5      two halves that do not reach each other
  trellis-lab partition --one-way n1 / n4     packets from n1 to n4 are dropped, those back pass
  trellis-lab loss n5 10                      10 % of what n5 sends, and of what it is sent
  trellis-lab heal                            undo all of these
  trellis-lab exec n2 -- ip route             a command on a node
  trellis-lab logs n1 control-plane -f
  trellis-lab --vagrant kill n4               the same for the VMs of `vagrant up`
  trellis-lab down                            nothing is left";

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a lab and wait until all its nodes are Ready
    Up(Up),
    /// Remove a lab, whatever state it is in
    Down {
        /// All labs of this machine
        #[arg(long)]
        all: bool,
    },
    /// Show the nodes: power, daemons, condition
    Status {
        /// Output format: table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Cut a node's power: silence its network port, then end everything in it at once
    Kill { node: String },
    /// Power a node on again; a wiped one joins anew
    Start { node: String },
    /// Freeze a node with everything in it
    Pause { node: String },
    /// Let a frozen node go on
    Resume { node: String },
    /// Cut a node's power and empty its disk
    Wipe { node: String },
    /// Split the network: `partition n1,n2 / n3` (nodes not named form a group of their own)
    Partition {
        /// Groups of comma-separated nodes, with a slash between
        #[arg(required = true)]
        groups: Vec<String>,
        /// Only packets from the first group to the second are dropped; those back pass
        #[arg(long)]
        one_way: bool,
    },
    /// Lose a share of the packets from and to a node, each way
    Loss {
        node: String,
        /// 0 to 100, with two decimals at most; 0 ends it
        percent: String,
    },
    /// Hold up the packets from and to a node, each way (needs the kernel's netem)
    Delay {
        node: String,
        /// 100ms, 1.5s; 0 ends it
        by: String,
    },
    /// Undo partitions, loss and delay
    Heal,
    /// Run a command on a node
    Exec {
        node: String,
        /// NAME=VALUE for the command's environment
        #[arg(long = "env", hide = true)]
        env: Vec<String>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Open a shell on a node
    Shell { node: String },
    /// Show a daemon's log: control-plane, node-agent, netd or init
    Logs {
        node: String,
        daemon: String,
        /// Go on as it grows
        #[arg(short, long)]
        follow: bool,
    },
    /// Deploy a small web application, ask it, kill a node, watch it come back
    Demo {
        /// Leave all nodes alive
        #[arg(long)]
        no_kill: bool,
    },
    /// Measure, beside a peer or a limit in the same run, in a lab of its own
    Bench {
        /// Only groups whose name holds this (repeatable): api-writes, pod-creates, pod-start,
        /// pod-start-beside-podman, pod-network, memory,
        /// leader-failover, node-failover
        #[arg(long)]
        only: Vec<String>,
        /// Where the JSON goes
        #[arg(long, default_value = "target/bench/latest.json")]
        output: PathBuf,
        /// How often each kind of death is repeated
        #[arg(long, default_value_t = 20)]
        failovers: usize,
    },
    /// Stop, start, restart (SIGTERM) or crash (SIGKILL) a daemon of a node
    Daemon {
        #[arg(value_parser = ["stop", "start", "restart", "crash"])]
        action: String,
        node: String,
        daemon: String,
    },
    #[command(name = "node-spawn", hide = true)]
    NodeSpawn { spec: PathBuf },
    #[command(name = "node-init", hide = true)]
    NodeInit { spec: PathBuf },
    #[command(hide = true)]
    Peer {
        spec: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(name = "underlay-spawn", hide = true)]
    UnderlaySpawn { spec: PathBuf },
    #[command(name = "underlay-hold", hide = true)]
    UnderlayHold { spec: PathBuf },
}

#[derive(ClapArgs, Debug)]
pub struct Up {
    /// Members of the control plane: 1, 3 or 5 [default: 3]; they run Pods too
    #[arg(long)]
    pub control_planes: Option<usize>,
    /// Nodes that only run Pods [default: 2]
    #[arg(long)]
    pub workers: Option<usize>,
    /// Topology file (TOML or YAML)
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// Where trellis-control-plane, trellis-netd, trellis-node-agent, trellis-shim and trellis are
    /// [default: beside this program, or where installations put them]
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
    /// Leave a lab that is there as it is; one whose making was interrupted is made anew
    #[arg(long)]
    pub if_missing: bool,
    /// Make the nodes only: no cluster on them
    #[arg(long)]
    pub bare: bool,
}
