# What a provider is asked for n1, as Vagrant itself reads the Vagrantfile: a line a fact. Runs nothing.
require "vagrant"
env = Vagrant::Environment.new(cwd: "/src", local_data_path: "/tmp/providers")
ARGV.map(&:to_sym).each do |provider|
  read = env.vagrantfile.machine_config(:n1, provider, env.boxes, nil, false)
  vm = read[:config].vm
  asked = vm.get_provider_config(provider)
  facts = { box: vm.box, address: vm.networks.filter_map { |kind, o| o[:ip] if kind == :private_network }.first }
  # VirtualBox has no fields for the machine's size: they become words of `VBoxManage modifyvm`.
  if provider == :virtualbox
    asked.customizations.each { |_, words| facts[words[2].delete_prefix("--")] = words[3] }
    facts[:linked_clone] = asked.linked_clone
  else
    facts.merge!(memory: asked.memory, cpus: asked.cpus, driver: asked.driver)
  end
  facts.each { |what, value| puts "#{provider} #{what}=#{value}" }
  (read[:config_errors] + read[:config_warnings]).each { |text| puts "#{provider} complains: #{text}" }
end
