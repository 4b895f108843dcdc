//! Keys of the system keyspace that the API owns.
//!
//! | key | value |
//! |---|---|
//! | `cluster/config` | [`ClusterConfig`](super::cluster::ClusterConfig), JSON |
//! | `cluster/ca-key` | the CA's key, sealed |
//! | `tokens/<id>` | a join token's hash, expiry and use, JSON |
//! | `names/<node>` | a node name that was joined with, JSON |
//! | `members/<name>` | a member's id and addresses, JSON |
//! | `members-next-id` | the next member's id, decimal |

/// The cluster's own facts.
pub const CLUSTER_CONFIG: &str = "cluster/config";
/// The CA's key, sealed with the key-encryption key.
pub const CA_KEY: &str = "cluster/ca-key";
/// Join tokens.
pub const TOKENS: &str = "tokens/";
/// The counter of member ids: none is ever given twice.
pub const NEXT_MEMBER_ID: &str = "members-next-id";

/// A join token.
pub fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// A node name in use.
pub fn registration(node: &str) -> String {
    format!("names/{node}")
}

/// A member that joined.
pub fn member(name: &str) -> String {
    format!("members/{name}")
}
