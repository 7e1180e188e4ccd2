"""The part of Backend.AI's GraphQL schema that its client reads. What is not here is refused by its name."""

from __future__ import annotations

from typing import Final

SDL: Final = """
scalar UUID
scalar JSONString
scalar DateTime
scalar BigInt

schema { query: Queries }

type Queries {
  keypair: KeyPair
  keypairs(email: String, is_active: Boolean): [KeyPair]
  keypair_list(limit: Int!, offset: Int!, filter: String, order: String, is_active: Boolean, domain_name: String,
    email: String): KeyPairList
  compute_session(id: UUID!): ComputeSession
  compute_session_list(limit: Int!, offset: Int!, filter: String, order: String, status: String, access_key: String,
    group_id: String, domain_name: String): ComputeSessionList
  agent(agent_id: String!): Agent
  agent_list(limit: Int!, offset: Int!, filter: String, order: String, status: String, scaling_group: String): AgentList
  images(is_operation: Boolean, is_installed: Boolean): [Image]
  user(email: String, domain_name: String): User
  user_from_uuid(user_id: ID, domain_name: String): User
  users(status: String, group_id: UUID, domain_name: String): [User]
  user_list(limit: Int!, offset: Int!, filter: String, order: String, status: String, group_id: UUID,
    domain_name: String): UserList
  domain(name: String): Domain
  domains(is_active: Boolean): [Domain]
  group(id: UUID!): Group
  groups(domain_name: String, is_active: Boolean): [Group]
  groups_by_name(name: String!, domain_name: String): [Group]
  scaling_group(name: String): ScalingGroup
  scaling_groups(is_active: Boolean): [ScalingGroup]
  keypair_resource_policy(name: String): KeyPairResourcePolicy
  keypair_resource_policies: [KeyPairResourcePolicy]
  vfolder_list(limit: Int!, offset: Int!, filter: String, order: String, group_id: UUID): VirtualFolderList
  vfolder_own_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_invited_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
}

type UserInfo { full_name: String, email: String }

type KeyPair {
  user_id: String
  projects: [String]
  user_info: UserInfo
  access_key: String
  "Is never told; null."
  secret_key: String
  is_active: Boolean
  is_admin: Boolean
  created_at: DateTime
  modified_at: DateTime
  last_used: DateTime
  resource_policy: String
  rate_limit: Int
  concurrency_used: Int
}
type KeyPairList { items: [KeyPair]!, total_count: Int! }

type Dependency { id: UUID, name: String }

type ComputeContainer {
  id: UUID
  role: String
  cluster_role: String
  cluster_idx: Int
  cluster_hostname: String
  session_id: UUID
  image: String
  registry: String
  architecture: String
  status: String
  status_info: String
  status_data: JSONString
  status_changed: DateTime
  agent: String
  container_id: String
  resource_opts: JSONString
  occupied_slots: JSONString
  preopen_ports: [Int]
  live_stat: JSONString
  last_stat: JSONString
}

type ComputeSession {
  id: UUID
  main_kernel_id: UUID
  tag: String
  name: String
  type: String
  image: String
  registry: String
  architecture: String
  cluster_template: String
  cluster_mode: String
  cluster_size: Int
  domain_name: String
  group_name: String
  group_id: UUID
  agent_ids: [String]
  agents: [String]
  user_email: String
  user_id: UUID
  access_key: String
  created_user_email: String
  created_user_id: UUID
  status: String
  status_info: String
  status_data: JSONString
  status_changed: DateTime
  created_at: DateTime
  terminated_at: DateTime
  starts_at: DateTime
  scheduled_at: DateTime
  startup_command: String
  bootstrap_script: String
  result: String
  resource_opts: JSONString
  scaling_group: String
  service_ports: JSONString
  mounts: [String]
  occupying_slots: JSONString
  occupied_slots: JSONString
  requested_slots: JSONString
  num_queries: BigInt
  containers: [ComputeContainer]
  dependencies: [Dependency]
  abusing_reports: [JSONString]
  idle_checks: JSONString
}
type ComputeSessionList { items: [ComputeSession]!, total_count: Int! }

type Agent {
  id: String
  status: String
  status_changed: DateTime
  region: String
  architecture: String
  scaling_group: String
  schedulable: Boolean
  available_slots: JSONString
  occupied_slots: JSONString
  addr: String
  first_contact: DateTime
  lost_at: DateTime
  live_stat: JSONString
  version: String
  compute_plugins: JSONString
  hardware_metadata: JSONString
  local_config: JSONString
  cpu_cur_pct: Float
  mem_cur_bytes: Float
}
type AgentList { items: [Agent]!, total_count: Int! }

type Image {
  name: String
  humanized_name: String
  registry: String
  architecture: String
  tag: String
  digest: String
  size_bytes: BigInt
  aliases: [String]
  installed: Boolean
}

type UserGroup { id: UUID, name: String }
type User {
  id: UUID
  uuid: UUID
  username: String
  email: String
  need_password_change: Boolean
  full_name: String
  description: String
  is_active: Boolean
  status: String
  status_info: String
  created_at: DateTime
  modified_at: DateTime
  domain_name: String
  role: String
  groups: [UserGroup]
  allowed_client_ip: [String]
  totp_activated: Boolean
  sudo_session_enabled: Boolean
  main_access_key: String
}
type UserList { items: [User]!, total_count: Int! }

type Domain {
  name: String
  description: String
  is_active: Boolean
  created_at: DateTime
  total_resource_slots: JSONString
  allowed_vfolder_hosts: JSONString
  allowed_docker_registries: [String]
  integration_id: String
}

type Group {
  id: UUID
  name: String
  description: String
  is_active: Boolean
  created_at: DateTime
  domain_name: String
  total_resource_slots: JSONString
  allowed_vfolder_hosts: JSONString
  integration_id: String
}

type ScalingGroup {
  name: String
  description: String
  is_active: Boolean
  is_public: Boolean
  created_at: DateTime
  driver: String
  driver_opts: JSONString
  scheduler: String
  scheduler_opts: JSONString
  use_host_network: Boolean
  wsproxy_addr: String
  wsproxy_api_token: String
}

type KeyPairResourcePolicy {
  name: String
  created_at: DateTime
  default_for_unspecified: String
  total_resource_slots: JSONString
  max_session_lifetime: Int
  max_concurrent_sessions: Int
  max_vfolder_count: Int
  max_vfolder_size: BigInt
  idle_timeout: BigInt
  max_containers_per_session: Int
  allowed_vfolder_hosts: JSONString
}

type VirtualFolder {
  id: String
  host: String
  name: String
  user: String
  group: String
  creator: String
  status: String
  unmanaged_path: String
  usage_mode: String
  permission: String
  ownership_type: String
  max_files: BigInt
  max_size: BigInt
  created_at: DateTime
  last_used: DateTime
  num_files: BigInt
  cur_size: BigInt
  cloneable: Boolean
}
type VirtualFolderList { items: [VirtualFolder]!, total_count: Int! }
"""
