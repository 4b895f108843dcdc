//! One file per sentence about the cluster.

mod cli;
mod containers;
mod daemons;
mod faults;
mod lab_verbs;
mod logs;
mod members;
mod policy;
mod ports;
mod private_registry;
mod reboot;
mod registry;
mod renewal;
mod routes;
mod slice;
mod streams;
mod terminal;
mod trust;
mod wires;
mod workloads;

use crate::harness::Scenario;

pub const ALL: &[Scenario] = &[
    // First: seconds after the others joined through n1, they must do without it.
    Scenario { name: "the_first_members_death_right_after_up_is_survived", body: slice::survives_the_first_member },
    Scenario { name: "a_deployment_spreads_and_answers_across_nodes", body: slice::spreads_and_answers },
    Scenario { name: "a_dead_nodes_pods_run_elsewhere_and_the_node_returns", body: slice::survives_a_power_cut },
    Scenario { name: "the_command_lines_codes_and_streams_are_as_documented", body: cli::table },
    Scenario { name: "the_labs_verbs_work_through_its_program", body: lab_verbs::through_the_program },
    Scenario { name: "the_demonstration_tells_its_timeline", body: lab_verbs::demo },
    Scenario { name: "logs_exec_and_port_forward_work_through_any_member", body: streams::through_any_member },
    Scenario { name: "an_exec_ends_with_its_caller", body: streams::caller_dies },
    Scenario { name: "logs_know_previous_tail_and_follow", body: streams::logs_options },
    Scenario { name: "logs_since_and_follow_over_rotation", body: logs::since_and_rotation },
    Scenario { name: "a_terminal_reaches_into_a_pod", body: terminal::exec },
    Scenario { name: "a_terminal_reaches_a_node_of_the_lab", body: terminal::lab_shell },
    Scenario { name: "what_does_not_run_says_why", body: containers::reasons },
    Scenario { name: "probes_start_serve_and_restart", body: containers::probes },
    Scenario {
        name: "containers_that_share_processes_see_each_other_and_no_way_out",
        body: containers::shared_processes,
    },
    Scenario { name: "a_pod_on_the_nodes_network_has_its_address", body: containers::host_network },
    Scenario { name: "rollouts_scale_and_conditions_are_as_in_kubernetes", body: workloads::rollouts },
    Scenario { name: "config_maps_secrets_and_volumes_reach_containers", body: workloads::volumes },
    Scenario { name: "a_pod_that_fits_nowhere_says_why", body: workloads::pending },
    Scenario { name: "cordon_and_drain_move_pods_away", body: workloads::drain },
    Scenario { name: "a_policy_admits_whom_it_names_and_nobody_else", body: policy::ingress },
    Scenario { name: "a_policy_holds_from_a_new_pods_first_packet", body: policy::from_the_first_packet },
    Scenario { name: "daemons_die_and_containers_run_on", body: daemons::die },
    Scenario { name: "pods_and_network_work_without_a_control_plane", body: daemons::no_control_plane },
    Scenario { name: "a_node_reboots_without_a_control_plane_and_its_pods_run", body: reboot::without_control_plane },
    Scenario { name: "a_node_of_another_subnet_says_so_until_it_is_not", body: routes::another_subnet },
    Scenario { name: "the_leaders_death_stops_writes_for_moments_only", body: faults::leader_dies },
    Scenario { name: "a_partitioned_node_is_replaced_and_returns_without_doubles", body: faults::partitioned },
    Scenario { name: "when_most_nodes_are_lost_nothing_is_evicted", body: faults::most_are_lost },
    Scenario { name: "lossy_wires_are_no_death", body: wires::loss_kills_nobody },
    Scenario { name: "a_node_that_stood_still_declares_nobody_dead", body: wires::stood_still },
    Scenario { name: "a_node_cut_off_one_way_does_not_flap", body: wires::one_way },
    Scenario { name: "a_wiped_member_joins_anew_and_catches_up", body: faults::wiped_member },
    Scenario { name: "a_removed_member_is_told_so_and_its_wiped_machine_joins_anew", body: members::removed_and_back },
    Scenario { name: "a_leader_without_its_majority_is_not_told_as_leader", body: members::cut_off_leader },
    Scenario { name: "a_followed_log_outlives_the_member_it_came_through", body: members::followed_log },
    Scenario { name: "daemons_keys_open_only_their_own_doors", body: trust::roles },
    Scenario { name: "every_port_is_documented_and_closed_to_strangers", body: ports::no_anonymous_port },
    Scenario { name: "secrets_lie_on_no_disk_in_the_clear", body: trust::secrets },
    Scenario { name: "certificates_that_live_for_seconds_are_renewed", body: renewal::short_lived },
    Scenario { name: "real_images_are_pulled_from_a_real_registry", body: registry::real_software },
    Scenario { name: "private_images_need_the_right_credentials", body: private_registry::credentials },
    Scenario { name: "an_index_gives_each_node_its_own_platform", body: private_registry::platforms },
    Scenario { name: "what_a_lying_registry_serves_is_refused", body: private_registry::tampered },
    // Last: it ends the lab.
    Scenario { name: "down_leaves_nothing", body: slice::down_leaves_nothing },
];
