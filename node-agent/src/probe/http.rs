//! A probe's GET, as the kubelet asks: redirects on the same host are followed, one to another host
//! is an answer that people are warned of.
use super::run::{Healthy, connect};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, client::danger as verify, pki_types as pki};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tonic::transport::Uri;

/// How much of an answer is read: the head and enough to say what is wrong (kubelet: 10 KiB).
pub(super) const ANSWER_LIMIT: usize = 10 * 1024;
/// Requests of one try (Go's client, which the kubelet uses).
const REQUESTS_MAX: usize = 10;
/// Statuses whose Location is gone to; other 3xx are answers.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// A GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTry {
    /// Host; the Pod's address when empty.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// https.
    pub tls: bool,
    /// Besides the usual ones, or instead of them.
    pub headers: Vec<(String, String)>,
}

/// Asks, and follows; `Err` says why it is unhealthy.
pub(super) async fn get(first: &HttpTry, pod_ip: &str) -> Result<Healthy, String> {
    let mut get = first.clone();
    for _ in 0..REQUESTS_MAX {
        let (code, location) = once(&get, pod_ip).await?;
        if !(200..400).contains(&code) {
            return Err(format!("HTTP probe failed with statuscode: {code}"));
        }
        if code < 300 {
            return Ok(None);
        }
        let next = match location.filter(|_| REDIRECTS.contains(&code)) {
            Some(location) => redirected(&get, pod_ip, &location)?,
            None => None,
        };
        match next {
            Some(next) => get = next,
            None => return Ok(Some(format!("HTTP probe ended at a redirect that is not followed: status {code}"))),
        }
    }
    Err(format!("stopped after {REQUESTS_MAX} redirects"))
}

/// Where a redirect leads, if it stays on the host.
fn redirected(from: &HttpTry, pod_ip: &str, location: &str) -> Result<Option<HttpTry>, String> {
    let bad = || format!("redirected to {location:?}, which is not a URL");
    let location = location.split('#').next().unwrap_or_default();
    let scheme = if from.tls { "https" } else { "http" };
    let absolute = match location.strip_prefix("//") {
        Some(rest) => format!("{scheme}://{rest}"),
        None if location.contains("://") => location.to_owned(),
        None => {
            let path = from.path.split('?').next().unwrap_or("/");
            let path = match location.chars().next() {
                None => from.path.clone(),
                Some('/') => location.to_owned(),
                Some('?') => format!("{path}{location}"),
                Some(_) => format!("{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
            };
            return Ok(Some(HttpTry { path, ..from.clone() }));
        }
    };
    let url: Uri = absolute.parse().map_err(|_| bad())?;
    let host = url.host().ok_or_else(bad)?.trim_matches(['[', ']']);
    let tls = match url.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(bad()),
    };
    let own = if from.host.is_empty() { pod_ip } else { &from.host };
    if !host.eq_ignore_ascii_case(own) {
        return Ok(None);
    }
    let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Some(HttpTry { port, path, tls, ..from.clone() }))
}

async fn once(get: &HttpTry, pod_ip: &str) -> Result<(u16, Option<String>), String> {
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

/// Status, and Location where there may be one.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    get: &HttpTry,
    pod_ip: &str,
    mut s: S,
) -> Result<(u16, Option<String>), String> {
    s.write_all(request(get, pod_ip).as_bytes()).await.map_err(|e| format!("write: {e}"))?;
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
        match status_code(&answer) {
            Some(300..400) if head(&answer).is_none() => {}
            Some(_) => break,
            None => {}
        }
    }
    match status_code(&answer) {
        Some(code @ 300..400) => Ok((code, location(head(&answer).unwrap_or(&answer)))),
        Some(code) => Ok((code, None)),
        None => Err("the answer is not HTTP".into()),
    }
}

fn request(get: &HttpTry, pod_ip: &str) -> String {
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
    text + "\r\n"
}

/// The answer up to its body, once it is there.
fn head(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some(&answer[..end])
}

fn location(head: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let mut headers = text.lines().skip(1).filter_map(|l| l.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))?;
    // It becomes part of a request line.
    Some(value.trim().to_owned()).filter(|v| !v.is_empty() && !v.contains(char::is_whitespace))
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
    use std::sync::Mutex;

    /// A server that answers by path; `{port}` in an answer is its own. What it was asked for.
    async fn server(answer: fn(&str) -> &'static str) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                let mut buffer = [0; 512];
                let n = s.read(&mut buffer).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = answer(&path).replace("{port}", &port.to_string());
                told.lock().unwrap().push(path);
                drop(s.write_all(answer.as_bytes()).await);
            }
        });
        (port, asked)
    }

    fn try_of(port: u16, path: &str) -> HttpTry {
        HttpTry { host: String::new(), port, path: path.into(), tls: false, headers: Vec::new() }
    }

    #[tokio::test]
    async fn a_status_from_200_to_299_is_healthy() {
        let (port, _) = server(|path| match path {
            "/ok" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/busy" => "HTTP/1.1 503 Busy\r\n\r\n",
            _ => "SSH-2.0\r\n",
        })
        .await;
        assert_eq!(get(&try_of(port, "/ok"), "127.0.0.1").await, Ok(None));
        let error = get(&try_of(port, "/busy"), "127.0.0.1").await.unwrap_err();
        assert_eq!(error, "HTTP probe failed with statuscode: 503");
        assert!(get(&try_of(port, "/ssh"), "127.0.0.1").await.is_err());
    }

    #[tokio::test]
    async fn redirects_on_the_host_are_followed_and_others_are_healthy_with_a_warning() {
        let (port, asked) = server(|path| match path {
            "/sick" => "HTTP/1.1 302 Found\r\nLocation: /bad\r\n\r\n",
            "/bad" => "HTTP/1.1 500 Oh\r\n\r\n",
            "/a/well" => "HTTP/1.1 301 Moved\r\nlocation: next?x=1\r\n\r\n",
            "/a/next?x=1" => "HTTP/1.1 308 Moved\r\nLocation: http://127.0.0.1:{port}/good#part\r\n\r\n",
            "/good" => "HTTP/1.1 200 OK\r\n\r\n",
            "/round" => "HTTP/1.1 307 Again\r\nLocation: /round\r\n\r\n",
            "/away" => "HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\n\r\n",
            "/bare" => "HTTP/1.1 302 Found\r\n\r\n",
            "/same" => "HTTP/1.1 304 Not Modified\r\nLocation: /bad\r\n\r\n",
            _ => "HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/\r\n\r\n",
        })
        .await;
        let error = get(&try_of(port, "/sick"), "127.0.0.1").await.unwrap_err();
        assert_eq!(error, "HTTP probe failed with statuscode: 500");
        asked.lock().unwrap().clear();
        assert_eq!(get(&try_of(port, "/a/well"), "127.0.0.1").await, Ok(None));
        assert_eq!(*asked.lock().unwrap(), ["/a/well", "/a/next?x=1", "/good"]);
        asked.lock().unwrap().clear();
        assert_eq!(get(&try_of(port, "/round"), "127.0.0.1").await.unwrap_err(), "stopped after 10 redirects");
        assert_eq!(asked.lock().unwrap().len(), 10);
        for (path, code) in [("/away", 302), ("/bare", 302), ("/same", 304)] {
            let warning = get(&try_of(port, path), "127.0.0.1").await.unwrap().unwrap();
            assert_eq!(warning, format!("HTTP probe ended at a redirect that is not followed: status {code}"));
        }
        assert!(get(&try_of(port, "/ftp"), "127.0.0.1").await.unwrap_err().contains("not a URL"));
    }
}
