//! Volumes of a pod: what one container writes, another reads.

use super::*;

/// Kubernetes, tasks, "Communicate Between Containers in the Same Pod Using a Shared Volume".
#[test]
fn nginx_gives_what_another_container_wrote_into_their_volume() {
    let volumes = vec![Volume::empty("shared-data", DEFAULT_VOLUME_LIMIT)];
    let mut segment = Segment::new(vec![pod("first", FIRST), PodConfig { volumes, ..pod("second", SECOND) }]);
    let web = mounting(container("nginx", Image::Nginx, ""), "shared-data", "/usr/share/nginx/html");
    segment.pods[1].start_container(web).unwrap();
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/");
    assert!(text.starts_with("HTTP/1.1 403 "), "{text}");

    let mut writer = mounting(container("debian", Image::Client, ""), "shared-data", "/pod-data");
    writer.args =
        ["/bin/sh", "-c", "echo Hello from the debian container > /pod-data/index.html; mkdir /pod-data/a"]
            .map(String::from)
            .to_vec();
    segment.pods[1].start_container(writer.clone()).unwrap();
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/");
    assert!(text.contains("Content-Type: text/html\r\nETag: \""), "{text}");
    assert!(text.ends_with("\r\n\r\nHello from the debian container\n"), "{text}");
    let tag = text.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
    let (text, _) =
        segment.exec(0, &format!("curl -s -i -H If-None-Match:{tag} http://10.1.15.3/index.html"));
    assert!(text.starts_with("HTTP/1.1 304 ") && text.ends_with("\r\n\r\n"), "{text}");
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/a?b");
    assert!(text.starts_with("HTTP/1.1 301 ") && text.contains("Location: /a/?b\r\n"), "{text}");
    for (target, status) in [("/none", 404), ("/a/", 403), ("/..%2fetc/hostname", 400), ("/%2e%2e/x", 400)] {
        let (text, _) = segment.exec(0, &format!("curl -s -i http://10.1.15.3{target}"));
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {text}");
    }
    assert_eq!(
        segment.exec(1, "cat /usr/share/nginx/html/index.html").0,
        "Hello from the debian container\n"
    );

    // The volume outlives its containers and ends with the pod; a container's own layer does not outlive it.
    writer.args =
        ["sh", "-c", "cat /pod-data/index.html && echo x > /own && cat /own"].map(String::from).to_vec();
    segment.pods[1].stop_container("nginx", 0, segment.now).unwrap();
    for _ in 0..2 {
        segment.pods[1].start_container(writer.clone()).unwrap();
        segment.run(Duration::from_secs(1));
        let text = segment.pods[1].container_output("debian");
        assert_eq!(String::from_utf8(text).unwrap(), "Hello from the debian container\nx\n");
        writer.args[2] = String::from("cat /pod-data/index.html; echo x >> /own && cat /own");
    }
    segment.pods[1].kill();
    assert!(segment.pods[1].volumes.is_empty());
}

#[test]
fn nginx_and_php_fpm_share_the_scripts_of_one_volume() {
    let script = "<h1>app</h1>\n<?php phpinfo(); ?>\n<p>end</p>\n";
    let names = [("index.php", script), ("style.css", "h1 {}")];
    let names = names.map(|(name, text)| (name.to_owned(), Entry::File(text.as_bytes().to_vec().into())));
    let volumes = vec![Volume::read_only("html", Entry::Directory(names.into()))];
    let mut segment = Segment::new(vec![pod("first", FIRST), PodConfig { volumes, ..pod("second", SECOND) }]);
    let args = "--root /var/www/html --fastcgi=localhost:9000 --expires 60";
    for container in [container("web", Image::Nginx, args), container("php", Image::PhpFpm, "")] {
        segment.pods[1].start_container(mounting(container, "html", "/var/www/html")).unwrap();
    }
    let (text, _) = segment.exec(0, "curl -s http://10.1.15.3/index.php?a=1");
    assert!(
        text.starts_with("<h1>app</h1>\npod: second\n") && text.ends_with("octets\n<p>end</p>\n"),
        "{text}"
    );
    let (text, _) = segment.exec(0, "curl -s -i http://10.1.15.3/style.css");
    assert!(text.contains("Content-Type: text/css\r\n") && text.ends_with("h1 {}"), "{text}");
    assert!(text.contains("Cache-Control: max-age=60\r\n"), "{text}");
    for target in ["/none.php", "/../index.php"] {
        let (text, _) = segment.exec(0, &format!("curl -s -i http://10.1.15.3{target}"));
        assert!(text.starts_with("HTTP/1.1 404 ") && text.ends_with("File not found.\n"), "{text}");
    }
    assert_eq!(segment.exec(1, "rm /var/www/html/index.php").1, 1);
}

#[test]
fn a_container_that_cannot_have_its_volume_does_not_start() {
    let mut pod = Pod::new(pod("first", FIRST));
    let error = pod.start_container(mounting(container("a", Image::Httpd, ""), "none", "/x")).unwrap_err();
    assert_eq!(error.to_string(), "container a mounts none, which is no volume of the pod");
    assert_eq!(pod.containers().count(), 1);
}
