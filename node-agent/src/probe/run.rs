//! One try of a probe over the network. Nodes reach Pods, so the Pod's address is asked straight
//! from here. (exec probes go through the shim, see `runtime::exec`.)
use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, client::danger as verify, pki_types as pki};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// How much of an answer is read: the status line and enough to say what is wrong (kubelet: 10 KiB).
const ANSWER_LIMIT: usize = 10 * 1024;

/// What a try is made of.
#[derive(Clone, Debug)]
pub enum Action {
    /// GET, any status from 200 to 399 is healthy.
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

/// A GET.
#[derive(Clone, Debug)]
pub struct HttpTry {
    host: String,
    port: u16,
    path: String,
    tls: bool,
    headers: Vec<(String, String)>,
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

/// Tries over the network; `Err` says why it is unhealthy.
pub async fn network(action: &Action, pod_ip: &str, timeout: Duration) -> Result<(), String> {
    let run = async {
        match action {
            Action::Http(get) => http(get, pod_ip).await,
            Action::Tcp { host, port } => connect(host, pod_ip, *port).await.map(drop),
            Action::Grpc { port, service } => grpc(pod_ip, *port, service).await,
            Action::Exec(_) => Ok(()),
        }
    };
    tokio::time::timeout(timeout, run)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", timeout.as_secs())))
}

async fn connect(host: &str, pod_ip: &str, port: u16) -> Result<TcpStream, String> {
    let host = if host.is_empty() { pod_ip } else { host };
    TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

async fn http(get: &HttpTry, pod_ip: &str) -> Result<(), String> {
    let stream = connect(&get.host, pod_ip, get.port).await?;
    if !get.tls {
        return exchange(get, pod_ip, stream).await;
    }
    let name = pki::ServerName::try_from(if get.host.is_empty() { pod_ip } else { &get.host }.to_owned())
        .map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(unverified());
    let stream = connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
    exchange(get, pod_ip, stream).await
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

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(get: &HttpTry, pod_ip: &str, mut s: S) -> Result<(), String> {
    let has = |name: &str| get.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut text = format!("GET {} HTTP/1.1\r\nConnection: close\r\n", get.path);
    if !has("Host") {
        let host = if get.host.is_empty() { pod_ip } else { &get.host };
        text += &format!("Host: {host}:{}\r\n", get.port);
    }
    if !has("User-Agent") {
        text += concat!("User-Agent: trellis-probe/", env!("CARGO_PKG_VERSION"), "\r\n");
    }
    if !has("Accept") {
        text += "Accept: */*\r\n";
    }
    for (name, value) in &get.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    s.write_all(text.as_bytes()).await.map_err(|e| format!("write: {e}"))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while answer.len() < ANSWER_LIMIT {
        match s.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            // A server that resets after its answer has answered.
            Err(_) if status_code(&answer).is_some() => break,
            Err(e) => return Err(format!("read: {e}")),
        }
        if status_code(&answer).is_some_and(|c| (200..400).contains(&c)) {
            return Ok(());
        }
    }
    match status_code(&answer) {
        Some(code) if (200..400).contains(&code) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err("the answer is not HTTP".into()),
    }
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let end = answer.iter().position(|b| *b == b'\n')?;
    let line = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|w| w.starts_with("HTTP/"))?;
    words.next()?.parse().ok()
}

/// Kubernetes does not verify a probe's certificate: it asks whether the app answers, not who it is.
fn unverified() -> Arc<ClientConfig> {
    Arc::new(
        ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth(),
    )
}

#[derive(Debug)]
struct AnyCertificate;

impl verify::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &pki::CertificateDer<'_>,
        _: &[pki::CertificateDer<'_>],
        _: &pki::ServerName<'_>,
        _: &[u8],
        _: pki::UnixTime,
    ) -> Result<verify::ServerCertVerified, rustls::Error> {
        Ok(verify::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &pki::CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<verify::HandshakeSignatureValid, rustls::Error> {
        Ok(verify::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &pki::CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<verify::HandshakeSignatureValid, rustls::Error> {
        Ok(verify::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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

    fn http_action(port: u16) -> Action {
        let get = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..Default::default() };
        action(&Probe { http_get: Some(get), ..Default::default() }, &Container::default()).unwrap()
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_healthy() {
        let limit = Duration::from_secs(5);
        let port = answering("HTTP/1.1 302 Found\r\n\r\n").await;
        assert_eq!(network(&http_action(port), "127.0.0.1", limit).await, Ok(()));
        let port = answering("HTTP/1.1 503 Busy\r\n\r\n").await;
        let error = network(&http_action(port), "127.0.0.1", limit).await.unwrap_err();
        assert_eq!(error, "HTTP probe failed with statuscode: 503");
        let port = answering("SSH-2.0\r\n").await;
        assert!(network(&http_action(port), "127.0.0.1", limit).await.is_err());
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
        assert_eq!(ask("good", port).await, Ok(()));
        assert_eq!(ask("", port).await, Ok(()), "the server as a whole");
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
