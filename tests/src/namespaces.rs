//! Three machines and a cable between them, made of network namespaces: each node has an address of its own, and packets can be
//! dropped for real, handshakes included.
//!
//! ```text
//!   hub: bridge, 10.211.0.254 ── the clients run here
//!    ├── n1  10.211.0.1
//!    ├── n2  10.211.0.2         nft in each: what is dropped of what comes in
//!    └── n3  10.211.0.3
//! ```
//!
//! Nothing is added to the network that this process lives in. Needs root, `ip` and `nft`.

use std::process::Command;

use crate::extra;

/// The nodes' network; it exists only within the namespaces.
const NET: &str = "10.211.0";

/// Which packets of a node are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Those from and to all others.
    Both,
    /// Those from the others.
    Incoming,
    /// Those to the others.
    Outgoing,
}

/// The namespaces; they go when this is dropped.
pub struct Network {
    /// Begins the names of all of them.
    prefix: String,
    nodes: u64,
}

impl Network {
    /// Makes namespaces for `nodes` nodes; why that cannot be done here.
    pub fn make(nodes: u64) -> Result<Network, String> {
        for program in ["ip", "nft"] {
            extra::program(program).ok_or(format!("{program} is not installed"))?;
        }
        // From here on dropping it cleans up.
        let network = Network { prefix: format!("beanpole-{}", std::process::id()), nodes };
        let hub = network.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} addr add {NET}.254/24 dev bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        (1..=nodes).try_for_each(|node| network.add(node))?;
        Ok(network)
    }

    fn add(&self, node: u64) -> Result<(), String> {
        let (hub, space) = (self.hub(), self.space(node));
        ip(&format!("netns add {space}"))?;
        ip(&format!("-n {space} link set lo up"))?;
        ip(&format!("-n {hub} link add node{node} type veth peer name cable netns {space}"))?;
        ip(&format!("-n {hub} link set node{node} master bridge up"))?;
        ip(&format!("-n {space} addr add {} dev cable", format_args!("{}/24", self.address(node))))?;
        ip(&format!("-n {space} link set cable up"))
    }

    /// Where the clients run.
    pub fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn space(&self, node: u64) -> String {
        format!("{}-n{node}", self.prefix)
    }

    /// A node's address.
    pub fn address(&self, node: u64) -> String {
        format!("{NET}.{node}")
    }

    /// A program that is to run on a node.
    pub fn on_node(&self, node: u64, program: &str) -> Command {
        within(&self.space(node), program)
    }

    /// A program that is to run where the clients are.
    pub fn on_hub(&self, program: &str) -> Command {
        within(&self.hub(), program)
    }

    /// The shell commands that cut a node off from the others, and not from its clients. Dropped is what comes in, so that no
    /// sender is told.
    pub fn cut(&self, node: u64, cut: Cut) -> String {
        let others: Vec<u64> = (1..=self.nodes).filter(|other| *other != node).collect();
        let mut commands = Vec::new();
        for other in others {
            if cut != Cut::Outgoing {
                commands.push(self.drop_from(node, other));
            }
            if cut != Cut::Incoming {
                commands.push(self.drop_from(other, node));
            }
        }
        commands.join("\n") + "\n"
    }

    fn drop_from(&self, at: u64, sender: u64) -> String {
        let nft = format!("ip netns exec {} nft", self.space(at));
        let (chain, from) = ("inet cable in", self.address(sender));
        format!(
            "{nft} add table inet cable && {nft} add chain {chain} '{{ type filter hook input priority 0; }}' && \
             {nft} add rule {chain} ip saddr {from} drop"
        )
    }

    /// The shell commands that end all that was cut.
    pub fn heal(&self) -> String {
        let each = |node: u64| format!("ip netns exec {} nft flush ruleset\n", self.space(node));
        (1..=self.nodes).map(each).collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for space in (1..=self.nodes).map(|node| self.space(node)).chain([self.hub()]) {
            // It was not made if making the network failed before.
            let _not_there = ip(&format!("netns del {space}"));
        }
    }
}

fn within(space: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space, program]);
    command
}

fn ip(words: &str) -> Result<(), String> {
    let out = Command::new("ip").args(words.split_whitespace()).output().map_err(|e| format!("ip: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(format!("ip {words}: {}", said.trim())) }
}
