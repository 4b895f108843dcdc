//! One try of a probe over the network. Nodes reach Pods, so the Pod's address is asked straight
//! from here. (exec probes go through the shim, see `runtime::exec`.)
use super::http::{self, HttpTry};
use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// How much of an answer is read.
const ANSWER_LIMIT: usize = http::ANSWER_LIMIT;

/// What a try is made of.
#[derive(Clone, Debug)]
pub enum Action {
    /// GET, any status from 200 to 399 is healthy, after redirects to the same host.
    Http(HttpTry),
    /// A connection that opens is healthy.
    Tcp {
        /// Host; the Pod's address when empty.
        host: String,
        /// Port.
        port: u16,
    },
    /// A server of gRPC's health protocol that says SERVING is healthy.
    Grpc {
        /// Port; the host is the Pod.
        port: u16,
        /// What is asked about; empty for the server as a whole.
        service: String,
    },
    /// A command in the container that exits 0 is healthy.
    Exec(Vec<String>),
}

/// Reads a probe's action; `Err` says what is wrong with it.
pub fn action(probe: &Probe, container: &Container) -> Result<Action, String> {
    if let Some(exec) = &probe.exec {
        return Ok(Action::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(HTTPGetAction { host, http_headers, path, port, scheme }) = &probe.http_get {
        let path = path.clone().unwrap_or_default();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let headers = http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        return Ok(Action::Http(HttpTry {
            host: host.clone().unwrap_or_default(),
            port: resolve_port(port, container)?,
            path,
            tls: scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            headers,
        }));
    }
    if let Some(TCPSocketAction { host, port }) = &probe.tcp_socket {
        return Ok(Action::Tcp { host: host.clone().unwrap_or_default(), port: resolve_port(port, container)? });
    }
    if let Some(GRPCAction { port, service }) = &probe.grpc {
        let port = resolve_port(&IntOrString::Int(*port), container)?;
        return Ok(Action::Grpc { port, service: service.clone().unwrap_or_default() });
    }
    Err("this kind of probe is not supported (httpGet, tcpSocket, grpc and exec are)".into())
}

fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("port {port:?} is neither a number nor a port name of the container"))
}

/// Healthy; with a text, people are to be warned.
pub type Healthy = Option<String>;

/// Tries over the network; `Err` says why it is unhealthy.
pub async fn network(action: &Action, pod_ip: &str, timeout: Duration) -> Result<Healthy, String> {
    let run = async {
        match action {
            Action::Http(get) => http::get(get, pod_ip).await,
            Action::Tcp { host, port } => connect(host, pod_ip, *port).await.map(|_| None),
            Action::Grpc { port, service } => grpc(pod_ip, *port, service).await.map(|()| None),
            Action::Exec(_) => Ok(None),
        }
    };
    tokio::time::timeout(timeout, run)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", timeout.as_secs())))
}

pub(super) async fn connect(host: &str, pod_ip: &str, port: u16) -> Result<TcpStream, String> {
    let host = if host.is_empty() { pod_ip } else { host };
    TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

/// grpc.health.v1 (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), in clear text
/// as the kubelet asks.
async fn grpc(pod_ip: &str, port: u16, service: &str) -> Result<(), String> {
    let host = if pod_ip.contains(':') { format!("[{pod_ip}]") } else { pod_ip.to_owned() };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|e| format!("dial tcp {host}:{port}: {}", sources(&e)))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_LIMIT);
    match client.check(HealthCheckRequest { service: service.to_owned() }).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
        },
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned())
        }
        Err(status) => Err(format!("health rpc probe failed: {}: {}", status.code(), status.message())),
    }
}

/// The error that lies deepest says what happened.
fn sources(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(inner) = deepest.source() {
        deepest = inner;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn answering(text: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                let mut buffer = [0; 512];
                drop(s.read(&mut buffer).await);
                drop(s.write_all(text.as_bytes()).await);
            }
        });
        port
    }

    #[tokio::test]
    async fn a_grpc_server_is_as_healthy_as_it_says() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("good", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("bad", tonic_health::ServingStatus::NotServing).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let limit = Duration::from_secs(5);
        let ask = |service: &str, port: u16| {
            let grpc = GRPCAction { port: i32::from(port), service: Some(service.to_owned()) };
            let action = action(&Probe { grpc: Some(grpc), ..Default::default() }, &Container::default()).unwrap();
            async move { network(&action, "127.0.0.1", limit).await }
        };
        assert_eq!(ask("good", port).await, Ok(None));
        assert_eq!(ask("", port).await, Ok(None), "the server as a whole");
        assert_eq!(ask("bad", port).await.unwrap_err(), "service unhealthy (responded with \"NOT_SERVING\")");
        assert!(ask("none", port).await.unwrap_err().contains("health rpc probe failed"));
        let other = answering("HTTP/1.1 200 OK\r\n\r\n").await;
        assert!(ask("good", other).await.is_err());
    }

    #[test]
    fn ports_go_by_number_or_name() {
        let c: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}]
        }))
        .unwrap();
        assert_eq!(resolve_port(&IntOrString::String("web".into()), &c), Ok(8080));
        assert_eq!(resolve_port(&IntOrString::Int(1), &c), Ok(1));
        assert!(resolve_port(&IntOrString::String("gone".into()), &c).is_err());
        assert!(resolve_port(&IntOrString::Int(70000), &c).is_err());
    }
}
