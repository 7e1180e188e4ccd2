"""The SSH gateway: `ssh`, `scp`, `sftp`, `rsync` and port forwarding into sessions, with no sshd in any image."""
