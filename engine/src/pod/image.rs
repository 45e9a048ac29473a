//! What containers can run, and by which names.
//!
//! The control side turns a manifest's image name into one of these; `app` is their behaviour.
//! Invariant: an unknown name is no image, so that the pod's owner hears of it. Depends on `config`.
//! Read first: `docs/architecture.md`, "Pods".

use super::Transport;

/// What a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Image {
    /// Holds the pod's stack; always the first container.
    Pause,
    /// Sends everything back, by TCP and UDP; port 7, or those of its arguments.
    Echo,
    /// A web server whose page names the pod; port 80.
    Httpd,
    /// The web server with its welcome page, or a proxy to FastCGI with `--fastcgi HOST:PORT`; port 80.
    Nginx,
    /// A FastCGI server whose page names the pod; port 9000.
    PhpFpm,
    /// The caching HTTP proxy; port 3128.
    Squid,
    /// Runs the program of its arguments, or waits for `exec`.
    Client,
}

/// Names of images, ours first; the part before a tag and behind the registry counts.
const NAMES: [(&str, Image); 24] = [
    ("flatnet/pause", Image::Pause),
    ("flatnet/echo", Image::Echo),
    ("flatnet/httpd", Image::Httpd),
    ("flatnet/nginx", Image::Nginx),
    ("flatnet/php-fpm", Image::PhpFpm),
    ("flatnet/squid", Image::Squid),
    ("flatnet/client", Image::Client),
    ("pause", Image::Pause),
    ("httpd", Image::Httpd),
    ("nginx", Image::Nginx),
    ("nginxinc/nginx-unprivileged", Image::Nginx),
    ("bitnami/nginx", Image::Nginx),
    ("php", Image::PhpFpm),
    ("php-fpm", Image::PhpFpm),
    ("bitnami/php-fpm", Image::PhpFpm),
    ("squid", Image::Squid),
    ("ubuntu/squid", Image::Squid),
    ("busybox", Image::Client),
    ("alpine", Image::Client),
    ("debian", Image::Client),
    ("ubuntu", Image::Client),
    ("perl", Image::Client),
    ("curlimages/curl", Image::Client),
    ("nicolaka/netshoot", Image::Client),
];

impl Image {
    /// Every image.
    pub const ALL: [Image; 7] =
        [Image::Pause, Image::Echo, Image::Httpd, Image::Nginx, Image::PhpFpm, Image::Squid, Image::Client];

    /// Finds an image by a name as manifests have it, like `nginx:1.27` or `docker.io/library/busybox`.
    #[must_use]
    pub fn find(name: &str) -> Option<Image> {
        let name = name.split('@').next().unwrap_or(name);
        let name = match name.rsplit_once(':') {
            Some((front, tag)) if !tag.contains('/') => front,
            Some(_) | None => name,
        };
        let name = match name.split_once('/') {
            Some((registry, rest)) if registry.contains('.') || registry.contains(':') => rest,
            Some(_) | None => name,
        };
        let name = name.strip_prefix("library/").unwrap_or(name);
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, image)| image)
    }

    /// Returns the image's own name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Image::Pause => "flatnet/pause",
            Image::Echo => "flatnet/echo",
            Image::Httpd => "flatnet/httpd",
            Image::Nginx => "flatnet/nginx",
            Image::PhpFpm => "flatnet/php-fpm",
            Image::Squid => "flatnet/squid",
            Image::Client => "flatnet/client",
        }
    }

    /// Returns the ports that a container of the image listens on when nothing else is said.
    #[must_use]
    pub const fn ports(self) -> &'static [(Transport, u16)] {
        match self {
            Image::Pause | Image::Client => &[],
            Image::Echo => &[(Transport::Tcp, 7), (Transport::Udp, 7)],
            Image::Httpd | Image::Nginx => &[(Transport::Tcp, 80)],
            Image::PhpFpm => &[(Transport::Tcp, 9000)],
            Image::Squid => &[(Transport::Tcp, 3128)],
        }
    }

    /// Returns all names that are known, for messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_registries_tags_and_digests_are_understood() {
        for (name, image) in [
            ("nginx", Image::Nginx),
            ("nginx:1.27-alpine", Image::Nginx),
            ("docker.io/library/nginx:latest", Image::Nginx),
            ("localhost:5000/flatnet/echo", Image::Echo),
            ("registry.k8s.io/pause:3.10", Image::Pause),
            ("php:8.3-fpm", Image::PhpFpm),
            ("ubuntu/squid:6.6", Image::Squid),
            ("busybox@sha256:0123", Image::Client),
        ] {
            assert_eq!(Image::find(name), Some(image), "{name}");
        }
        assert_eq!(Image::find("mysql:8"), None);
    }

    #[test]
    fn every_image_is_found_by_its_own_name() {
        for image in Image::ALL {
            assert_eq!(Image::find(image.name()), Some(image));
        }
    }
}
