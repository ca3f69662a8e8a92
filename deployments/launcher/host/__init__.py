"""The launcher's hold on the machine: folder, ports, files, environment and processes."""
