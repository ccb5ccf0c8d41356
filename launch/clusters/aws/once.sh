#!/usr/bin/env bash
# Once per AWS account: the bucket, the two roles of ../../../ray_cluster.yaml, and the bucket's name in that file.
#
#   bash launch/clusters/aws/once.sh BUCKET [FILE]
#
# Needs the command `aws`, configured for somebody who may make buckets and roles. What is there already is kept or brought up
# to date, so it may be run again: after another region or machine type in FILE (default: ray_cluster.yaml), say.
# Rights: trust.json (who may have the roles), bucket.json (both), head.json (the head).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bucket="${1:?error: name a bucket: bash launch/clusters/aws/once.sh BUCKET}"
file="${2:-$here/../../../ray_cluster.yaml}"
region="$(sed -n 's/^  region: *//p' "$file")"
export AWS_DEFAULT_REGION="$region"

policy() { sed "s/<your-bucket>/$bucket/; s/<your-region>/$region/" "$here/$1"; }

if ! aws s3api head-bucket --bucket "$bucket" >/dev/null 2>&1; then
    where=(--create-bucket-configuration "LocationConstraint=$region")
    [ "$region" != us-east-1 ] || where=()
    aws s3api create-bucket --bucket "$bucket" --region "$region" ${where[@]+"${where[@]}"} >/dev/null
fi
aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
# Parts of uploads that were cut off cost like objects and are seen by nobody.
aws s3api put-bucket-lifecycle-configuration --bucket "$bucket" --lifecycle-configuration \
    '{"Rules": [{"ID": "cut-off-uploads", "Status": "Enabled", "Filter": {}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]}' \
    >/dev/null

# The account's first spot instance needs a role of AWS's own, which a worker's may not make.
told="$(aws iam create-service-linked-role --aws-service-name spot.amazonaws.com 2>&1)" ||
    grep -q -e "has been taken" -e "already exists" <<<"$told" || { echo "$told" >&2 && exit 1; }
for role in cddpm-head cddpm-worker; do
    aws iam get-role --role-name "$role" >/dev/null 2>&1 ||
        aws iam create-role --role-name "$role" --assume-role-policy-document "$(policy trust.json)" >/dev/null
    aws iam put-role-policy --role-name "$role" --policy-name bucket --policy-document "$(policy bucket.json)"
    if ! aws iam get-instance-profile --instance-profile-name "$role" >/dev/null 2>&1; then
        aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
    fi
done
aws iam put-role-policy --role-name cddpm-head --policy-name workers --policy-document "$(policy head.json)"

sed -i.bak "s|s3://<your-bucket>/|s3://$bucket/|" "$file" && rm "$file.bak"
echo "s3://$bucket, roles cddpm-head and cddpm-worker; next: cddpm cluster check $(basename "$file")"
